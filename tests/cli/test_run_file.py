"""Run files: a run is repeated with every option, the command line comes first, and mistakes are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from finetune import FineTuner
from finetune.cli import main

COLOURS = {"cat": (220, 30, 30), "dog": (30, 220, 30)}


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that holds a folder of two classes, and return the former."""
    for name, colour in COLOURS.items():
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (24, 20), colour).save(tmp_path / "pets" / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*arguments: str) -> None:
    main(["train", *arguments])


FIRST = (
    "pets", "--out", "first.safetensors", "--model", "squeezenet1_1", "--weights", "none", "--epochs", "2",
    "--seed", "3",
    "--val", "none", "--lr", "1e-4,1e-3", "--freeze", "features.0", "--freeze", "features.3", "--optimizer", "sgd",
    "--schedule", "linear", "--augment", "none", "--metric", "f1", "--ema", "0.9", "--mixup", "0.2", "--class-weights",
    "--accumulate", "2", "--max-grad-norm", "1", "--weight-decay", "0.05", "--cache", "none",
)  # fmt: skip


def test_a_run_file_repeats_the_run_bit_for_bit(pets: Path) -> None:
    train(*FIRST)
    (pets / "run.toml").rename(pets / "kept.toml")
    first = FineTuner.load_checkpoint("first.safetensors")
    train("kept.toml", "--out", "second.safetensors")
    second = FineTuner.load_checkpoint("second.safetensors")
    for (name, one), other in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert [row["loss"] for row in first.history] == [row["loss"] for row in second.history]
    assert first.settings.optimizer == second.settings.optimizer == "sgd"
    assert (pets / "run.toml").read_text().replace("second", "first") == (pets / "kept.toml").read_text().replace(
        "kept.toml", "run.toml"
    )


def test_a_run_file_holds_logs_reports_and_cards(pets: Path) -> None:
    new = "--model", "squeezenet1_1", "--weights", "none", "--freeze", "backbone", "--epochs", "1", "--val", "0.25"
    train("pets", "--out", "a.safetensors", *new, "--log", "csv", "--report", "a.html", "--card", "--no-progress")
    made = "a.csv", "a.html", "README.md"
    assert all((pets / name).is_file() for name in made)
    for name in made:
        (pets / name).unlink()
    train("run.toml", "--no-card")
    assert [(pets / name).is_file() for name in made] == [True, True, False]
    kept = (pets / "run.toml").read_text()
    assert all(
        line in kept for line in ('log = [\n    "csv",\n]', 'report = "a.html"', "card = false", "progress = false")
    )


def test_options_of_the_command_line_come_first(pets: Path) -> None:
    train(*FIRST)
    train("run.toml", "--epochs", "1", "--seed", "7")
    tuner = FineTuner.load_checkpoint("first.safetensors")
    assert (len(tuner.history), tuner.settings.seed) == (1, 7)


def test_the_run_file_of_another_checkpoint_is_kept(pets: Path) -> None:
    train(*FIRST)
    before = (pets / "run.toml").read_bytes()
    train(*FIRST, "--out", "other.safetensors")
    assert (pets / "run.toml").read_bytes() == before
    assert 'out = "other.safetensors"' in (pets / "other.run.toml").read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('data = "pets"\nepoch = 3\n', "unknown option 'epoch'.*Did you mean 'epochs'"),
        ('data = "pets"\nout = "a"\nepochs = 0\n', "Invalid value for .--epochs"),
        ('data = "pets"\nout = "a"\nepochs = "two"\n', "Invalid value for .--epochs"),
        ("epochs = 3\n", "names no data"),
        ('data = "run.toml"\n', "names no data"),
        ("data = pets\n", "cannot be read"),
        ('data = "pets"\n', "--out"),
    ],
)
def test_a_mistake_in_a_run_file_is_one_line(
    pets: Path, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (pets / "run.toml").write_text(content)
    with pytest.raises(SystemExit) as ended:
        train("run.toml")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line
