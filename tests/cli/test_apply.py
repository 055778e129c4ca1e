"""Commands on a checkpoint, as programs read them: JSON of the values that Python gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from finetune import FineTuner
from finetune.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images of two classes and a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    for name, colour in {"cat": (220, 30, 30), "dog": (30, 220, 30)}.items():
        (folder / "pets" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (24, 20), colour).save(folder / "pets" / name / f"{index}.png")
    tuner = FineTuner("squeezenet1_1", weights=None, device="cpu", preprocessing={"crop_size": 32}).replace_head(2)
    tuner.classes = ("cat", "dog")
    tuner.save_checkpoint(folder / "pets.safetensors")
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> object:
    capsys.readouterr()  # from before, such as the progress of a call in Python
    main([str(each) for each in arguments])
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "evaluate", folder / "pets.safetensors", folder / "pets", "--json")
    assert found == FineTuner.load_checkpoint(folder / "pets.safetensors").evaluate(folder / "pets")


@pytest.mark.parametrize("command", ["evaluate", "check-data", "train"])
def test_the_separator_of_labels(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    cells = ["clear primary", "haze primary", "clear water", "haze water"] * 2
    for index in range(8):
        Image.new("RGB", (24, 20), (30 * index, 99, 99)).save(tmp_path / f"{index}.png")
    rows = "".join(f"{index}.png,{cell}\n" for index, cell in enumerate(cells))
    data, file = tmp_path / "t.csv", tmp_path / "m.safetensors"
    data.write_text(f"path,label\n{rows}", encoding="utf-8")
    tuner = FineTuner("squeezenet1_1", weights=None, device="cpu", preprocessing={"crop_size": 32}, loss="bce")
    tuner.replace_head(4).classes = ("clear", "haze", "primary", "water")
    tuner.save_checkpoint(file)
    new = tmp_path / "n.safetensors"
    options = {
        "check-data": (data, "--model", file),
        "train": (
            data,
            "--model",
            "squeezenet1_1",
            "--weights",
            "none",
            "--epochs",
            1,
            "--out",
            tmp_path / "n.safetensors",
        ),
    }.get(command, (file, data))
    main([str(each) for each in (command, *options, "--label-separator", " ")])
    if command == "train":
        trained = FineTuner.load_checkpoint(new)
        assert (trained.classes, trained.task.kind) == (tuner.classes, "multilabel")
        assert 'label_separator = " "' in (tmp_path / "run.toml").read_text(encoding="utf-8")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(SystemExit):
        main([str(folder if each == data else each) for each in (command, *options, "--label-separator", " ")])
    assert "Expected a table with --label-separator" in capsys.readouterr().err


def test_predict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "predict", folder / "pets.safetensors", folder / "pets", "--json", "--top", 2)
    answers = FineTuner.load_checkpoint(folder / "pets.safetensors").classify(folder / "pets", top=2)
    out = folder / "answers.csv"
    assert printed(capsys, "predict", folder / "pets.safetensors", folder / "pets", "--json", "--out", out)
    assert len(out.read_text().splitlines()) == 7
    assert found == [{"sample": each.sample, "scores": each.scores, "rejected": False} for each in answers]


def test_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "verify", folder / "pets.safetensors", "--json")
    assert isinstance(found, dict)
    assert any("squeezenet1_1" in str(value) for value in found.values())


def test_export(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pets.pt2"
    options = "--format", "torch", "--verify", folder / "pets", "--json"
    found = printed(capsys, "export", folder / "pets.safetensors", out, *options)
    assert isinstance(found, dict)
    assert (found["same"], found["samples"], found["path"]) == (6, 6, str(out))
    assert out.with_name("pets_torch.py").exists()


def test_a_value_that_is_not_finite_is_null(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from finetune.cli.options import print_json

    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x"), "d": None, "e": torch.float32})
    assert json.loads(capsys.readouterr().out) == {
        "a": None,
        "b": [None, 1.5],
        "c": "x",
        "d": None,
        "e": "torch.float32",
    }
