"""`finetune train --nproc`: one model trains in several processes, of which one speaks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from finetune import FineTuner
from finetune.cli import main


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, colour in {"cat": (220, 30, 30), "dog": (30, 220, 30)}.items():
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (24, 20), (*colour[:2], 20 * index)).save(tmp_path / "pets" / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


_OPTIONS = (
    "--model", "shufflenet_v2_x0_5", "--weights", "none", "--freeze", "backbone", "--augment", "none", "--val", "none",
    "--epochs", "1",
)  # fmt: skip


@pytest.mark.slow
def test_the_command_trains_as_in_one_process(pets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["train", "pets", "--nproc", "2", "--fsdp", "--out", "two.safetensors", "--batch-size", "2", *_OPTIONS])
    said = capfd.readouterr()
    assert said.out.count("wrote two.safetensors") == 1
    assert said.err.count("2, batch size 2 in each and 4 in all") == 1
    main(["train", "pets", "--out", "one.safetensors", "--batch-size", "4", *_OPTIONS])
    one, two = (FineTuner.load_checkpoint(f"{name}.safetensors") for name in ("one", "two"))
    assert two.history[0]["loss"] == pytest.approx(one.history[0]["loss"], rel=1e-4)
    for name, weight in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_mistake_is_said_once_without_a_traceback(pets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "missing", "--nproc", "2", "--out", "a.safetensors", *_OPTIONS])
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert said.count("'missing' does not exist") == 1
    assert "Traceback" not in said
