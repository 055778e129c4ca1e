"""Finding the checkpoint that a run resumes from, and refusing those of another run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from finetune import ArgumentError, CheckpointError, FineTuner
from finetune.checkpoint.resume import find_run
from tests.helpers.golden import net, vectors
from tests.helpers.models import modes, states


def structure(model: nn.Module) -> tuple[Any, ...]:
    """Return everything but the weights that a failed load might change."""
    return dict(model.named_modules()), states(model), modes(model), set(vars(model))


def finished(folder: Path) -> FineTuner:
    tuner = FineTuner(net(), device="cpu")
    tuner.fit(vectors(), checkpoint_dir=folder, progress=False)
    return tuner


def test_a_checkpoint_without_training_state_cannot_be_resumed(tmp_path: Path) -> None:
    path = FineTuner(net(), device="cpu").save_checkpoint(tmp_path / "f.safetensors")
    tuner = FineTuner(net(), device="cpu")

    with pytest.raises(CheckpointError, match=r"has no training state.*last\.safetensors"):
        tuner.fit(vectors(), resume_from=path)
    with pytest.raises(CheckpointError, match=r"None of the 1 checkpoints in .* is an intact one to resume from"):
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
