"""Finding the checkpoint that a run resumes from, and refusing those of another run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from finetune import ArgumentError, CheckpointError, FineTuner
from finetune.callbacks import EMA, ModelCheckpoint
from finetune.checkpoint import file, schema
from finetune.checkpoint.resume import find_run
from tests.helpers.golden import net, vectors
from tests.helpers.models import modes, states


def structure(model: nn.Module) -> tuple[Any, ...]:
    """Return everything but the weights that a failed load might change."""
    return dict(model.named_modules()), states(model), modes(model), set(vars(model))


def finished(folder: Path, epochs: int = 1) -> FineTuner:
    tuner = FineTuner(net(), device="cpu")
    tuner.fit(vectors(), checkpoint_dir=folder, epochs=epochs, progress=False)
    return tuner


def test_a_checkpoint_without_training_state_cannot_be_resumed(tmp_path: Path) -> None:
    path = FineTuner(net(), device="cpu").save_checkpoint(tmp_path / "f.safetensors")
    tuner = FineTuner(net(), device="cpu")

    with pytest.raises(CheckpointError, match=r"has no training state.*last\.safetensors"):
        tuner.fit(vectors(), resume_from=path)
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is of a run to resume"):
        tuner.fit(vectors(), resume_from=tmp_path)
    with pytest.raises(ArgumentError, match="checkpoint_dir"):
        tuner.fit(vectors(), resume_from="auto")


@pytest.mark.parametrize("case", ["model", "metrics"])
def test_a_run_of_another_kind_is_an_error_before_anything_changes(
    case: str, same: Callable[[Any, Any], bool], tmp_path: Path
) -> None:
    finished(tmp_path)
    model = net() if case == "metrics" else nn.Sequential(nn.Linear(4, 3))
    other = FineTuner(model, device="cpu", metrics=["f1"] if case == "metrics" else None)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = structure(model)

    with pytest.raises(CheckpointError, match="different metrics" if case == "metrics" else "does not belong"):
        other.fit(vectors(), resume_from=tmp_path, progress=False)

    assert same(model.state_dict(), weights)
    assert structure(model) == before
    assert len(other.history) == 0


def test_the_newest_intact_checkpoint_of_a_folder_is_found(tmp_path: Path) -> None:
    finished(tmp_path)
    last = tmp_path / "last.safetensors"
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(last.read_bytes()[:-1])
    os.utime(damaged, (last.stat().st_atime, last.stat().st_mtime + 10))

    for resume_from in (tmp_path, str(tmp_path), "auto", last):
        found = find_run(resume_from, tmp_path)
        assert found is not None
        assert found.path == last
        assert found.training is not None


def test_there_is_nothing_to_resume_without_a_request_or_with_auto_in_an_empty_folder(tmp_path: Path) -> None:
    assert find_run(None, tmp_path) is None
    assert find_run("auto", tmp_path) is None


def newer(path: Path) -> None:
    """Write a checkpoint of a later version of the format."""
    file.write(path, schema.to_content(schema.read(path)), version=schema.format_version() + 1)


def test_a_damaged_last_is_said_and_the_previous_one_is_resumed(tmp_path: Path, caplog: Any) -> None:
    finished(tmp_path, epochs=3)
    data = (tmp_path / "last.safetensors").read_bytes()
    for damaged in (data[:-1], data[:100], b"", bytes([data[0] ^ 1]) + data[1:]):
        (tmp_path / "last.safetensors").write_bytes(damaged)
        caplog.clear()
        found = find_run("auto", tmp_path)

        assert found is not None
        assert found.path is not None
        assert found.path.name == "previous.safetensors"
        assert len(found.history) == 2
        assert "last.safetensors is" in caplog.text
        assert "The run resumes from" in caplog.text


def test_progress_decides_and_not_the_time_of_a_file(tmp_path: Path) -> None:
    finished(tmp_path, epochs=3)
    for name, seconds in (("last", 1), ("best", 2), ("previous", 3)):
        os.utime(tmp_path / f"{name}.safetensors", (seconds, seconds))
    found = find_run(tmp_path, None)

    assert found is not None
    assert len(found.history) == 3


def test_a_newer_format_is_an_error_and_is_not_overwritten(tmp_path: Path) -> None:
    finished(tmp_path, epochs=2)
    newer(tmp_path / "last.safetensors")
    before = (tmp_path / "last.safetensors").read_bytes()

    with pytest.raises(CheckpointError, match=r"has format version .* Update torch-finetune"):
        FineTuner(net(), device="cpu").fit(vectors(), checkpoint_dir=tmp_path, resume_from="auto")
    assert (tmp_path / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["last", "best", "previous", "epoch-0001"])
def test_a_newer_format_is_not_overwritten_by_a_run_that_starts_anew(tmp_path: Path, name: str) -> None:
    finished(tmp_path, epochs=2)
    (tmp_path / "last.safetensors").rename(tmp_path / f"{name}.safetensors")
    newer(tmp_path / f"{name}.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    for more in ({"checkpoint_dir": tmp_path}, {"callbacks": ModelCheckpoint(tmp_path, keep=1)}):
        with pytest.raises(CheckpointError, match=r"has format version .* Update torch-finetune"):
            FineTuner(net(), device="cpu").fit(vectors(), **more)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damaged_and_strangers_files_are_overwritten_by_a_run_that_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").write_bytes(b"damaged")
    save_file({"w": torch.zeros(2)}, tmp_path / "best.safetensors")
    finished(tmp_path)
    assert find_run("auto", tmp_path) is not None


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(tmp_path: Path) -> None:
    finished(tmp_path, epochs=2)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(
        CheckpointError, match=r"No checkpoint in .* is intact.*last\.safetensors is damaged.*omit resume_from"
    ):
        find_run("auto", tmp_path)


def test_a_run_starts_anew_where_no_run_was_saved(tmp_path: Path) -> None:
    """A model of someone else, one without training state, and the best of a run that was killed before its last."""
    save_file({"w": torch.zeros(2)}, tmp_path / "stranger.safetensors")
    FineTuner(net(), device="cpu").save_checkpoint(tmp_path / "best.safetensors")

    assert find_run("auto", tmp_path) is None
    FineTuner(net(), device="cpu").fit(vectors(), checkpoint_dir=tmp_path, resume_from="auto", progress=False)


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "seed": ({"seed": 1}, {}, "seed 0, now 1"),
    "optimizer": ({"optimizer": "sgd"}, {}, "optimizer adamw, now sgd"),
    "weight decay": ({"weight_decay": 0.5}, {}, "weight_decay 0.01, now 0.5"),
    "loss": ({"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, {}, "loss None, now CrossEntropyLoss"),
    "rate": ({}, {"lr": 0.5}, "lr None, now 0.5"),
    "schedule": ({}, {"schedule": "constant"}, "schedule cosine, now constant"),
    "data": ({}, {"train": (torch.zeros(5, 4), torch.arange(5) % 2)}, "samples of the training data"),
    "validation data": ({}, {"val": vectors()}, "validation data None, now"),
    "callbacks": ({}, {"callbacks": EMA(0.5)}, r"callbacks \[\], now EMA"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_run_is_an_error_unless_it_is_meant(tmp_path: Path, change: str) -> None:
    settings, arguments, message = CHANGES[change]
    finished(tmp_path)

    def resume(**more: Any) -> FineTuner:
        tuner = FineTuner(net(), device="cpu", **settings)
        given = {"train": vectors(), "epochs": 2, "resume_from": tmp_path, "progress": False, **arguments, **more}
        tuner.fit(**given)
        return tuner

    with pytest.raises(CheckpointError, match=rf"\.safetensors: The run to resume had other arguments: .*{message}"):
        resume()
    assert len(resume(resume_changed=True).history) == 2
