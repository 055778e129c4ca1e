"""`ModelCheckpoint`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from finetune import ArgumentError, FineTuner
from finetune.callbacks import Callback, ModelCheckpoint
from finetune.errors import CheckpointError
from tests.helpers.tuners import ScriptedTuner


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_last_and_best_are_kept(scripted, tmp_path, net, state_of, same) -> None:
    tuner = scripted([3.0, 1.0, 2.0], checkpoint_dir=tmp_path)

    last = FineTuner.load_checkpoint(tmp_path / "last.safetensors", net(seed=1))
    best = FineTuner.load_checkpoint(tmp_path / "best.safetensors", net(seed=1))
    assert names(tmp_path) == ["best.safetensors", "last.safetensors", "previous.safetensors"]
    assert (len(last.history), len(best.history)) == (3, 2)
    assert same(state_of(last.model), state_of(tuner.model))
    assert not same(state_of(last.model), state_of(best.model))


def test_the_best_of_a_metric_for_which_higher_is_better(scripted, tmp_path, net) -> None:
    scripted([0.2, 0.9, 0.5], ModelCheckpoint(tmp_path, monitor="val_accuracy"))

    assert len(FineTuner.load_checkpoint(tmp_path / "best.safetensors", net()).history) == 2


def test_trap_37_nan_is_never_the_best(scripted, tmp_path, net) -> None:
    scripted([math.nan, 2.0, math.nan], checkpoint_dir=tmp_path / "some")
    scripted([math.nan, math.nan], checkpoint_dir=tmp_path / "none")

    assert len(FineTuner.load_checkpoint(tmp_path / "some" / "best.safetensors", net()).history) == 2
    assert names(tmp_path / "none") == ["last.safetensors", "previous.safetensors"]


def test_without_validation_data_the_loss_is_monitored(net, blobs, tmp_path) -> None:
    FineTuner(net(), device="cpu").fit(blobs(), checkpoint_dir=tmp_path / "deep" / "folder")

    assert names(tmp_path / "deep" / "folder") == ["best.safetensors", "last.safetensors"]


def test_the_newest_numbered_checkpoints_are_kept(scripted, tmp_path) -> None:
    scripted([1.0] * 5, ModelCheckpoint(tmp_path, keep=2))

    numbered = ["epoch-0004.safetensors", "epoch-0005.safetensors"]
    assert names(tmp_path) == ["best.safetensors", *numbered, "last.safetensors", "previous.safetensors"]


def test_numbered_checkpoints_of_an_earlier_run_are_deleted_first(scripted, tmp_path) -> None:
    scripted([1.0] * 5, ModelCheckpoint(tmp_path, keep=1))

    scripted([1.0] * 2, ModelCheckpoint(tmp_path, keep=1))

    assert [name for name in names(tmp_path) if name.startswith("epoch")] == ["epoch-0002.safetensors"]


def test_the_last_checkpoint_is_written_every_n_steps(net, blobs, tmp_path) -> None:
    class Look(Callback):
        saves_run = True  # after the other
        positions: list[int | None]

        def on_step_end(self, run: Any) -> None:
            path = tmp_path / "last.safetensors"
            written = path.stat().st_mtime_ns if path.exists() else None
            self.positions = [*getattr(self, "positions", []), written]

    look = Look()

    FineTuner(net(), device="cpu").fit(
        blobs(), batch_size=4, callbacks=[ModelCheckpoint(tmp_path, every_steps=2), look]
    )

    assert look.positions[0] is None
    assert look.positions[1] is not None
    assert len(set(look.positions)) == 4  # none, and after updates 2, 4 and 6


def test_trap_16_a_checkpoint_includes_the_effects_of_later_callbacks(net, blobs, tmp_path) -> None:
    class Stop(Callback):
        only_watches = True

        def on_epoch_end(self, run: Any) -> None:
            run.end_phase = run.epoch == 2

    arguments = {"epochs": 4, "batch_size": 12}
    FineTuner(net(), device="cpu").fit(blobs(), callbacks=[ModelCheckpoint(tmp_path), Stop()], **arguments)
    resumed = FineTuner(net(), device="cpu")

    resumed.fit(blobs(), resume_from=tmp_path, **arguments)

    assert len(resumed.history) == 2


def test_a_resumed_run_keeps_the_best_value(net, blobs, tmp_path) -> None:
    def fit(values: list[float], epochs: int, **kwargs: Any) -> None:
        tuner = ScriptedTuner(net(), device="cpu")
        tuner.script = iter(values)
        tuner.fit(blobs(), blobs(20), epochs=epochs, batch_size=20, checkpoint_dir=tmp_path, **kwargs)

    fit([2.0, 1.0], 2)
    fit([5.0], 3, resume_from="auto")

    assert len(FineTuner.load_checkpoint(tmp_path / "best.safetensors", net()).history) == 2
    assert len(FineTuner.load_checkpoint(tmp_path / "last.safetensors", net()).history) == 3


def test_a_checkpoint_folder_that_is_a_file_is_an_error_before_training(net, blobs, tmp_path) -> None:
    (tmp_path / "taken").write_text("")
    tuner = FineTuner(net(), device="cpu")
    with pytest.raises(CheckpointError, match="cannot be kept in"):
        tuner.fit(blobs(), checkpoint_dir=tmp_path / "taken")
    assert len(tuner.history) == 0


def test_sharded_checkpoints_of_a_whole_model_are_an_error_before_training(net, blobs, tmp_path) -> None:
    tuner = FineTuner(net(), device="cpu")
    with pytest.raises(ArgumentError, match="sharded=True needs weights that are divided"):
        tuner.fit(blobs(), callbacks=ModelCheckpoint(tmp_path, sharded=True))
    with pytest.raises(ArgumentError, match="sharded=True needs weights that are divided"):
        tuner.save_checkpoint(tmp_path / "a.safetensors", sharded=True)
    assert (len(tuner.history), names(tmp_path)) == (0, [])


def test_two_runs_in_one_folder_are_noticed(net, blobs, tmp_path) -> None:
    """Also through a link, and through a `ModelCheckpoint` of one's own."""
    (tmp_path / "link").symlink_to(tmp_path / "runs")

    class Second(Callback):
        def on_epoch_end(self, run: Any) -> None:
            with pytest.raises(CheckpointError, match="Another run is saving its checkpoints to"):
                FineTuner(net(), device="cpu").fit(blobs(), checkpoint_dir=tmp_path / "link")
            with pytest.raises(CheckpointError, match="Another run"):
                FineTuner(net(), device="cpu").fit(blobs(), callbacks=ModelCheckpoint(tmp_path / "runs"))

    FineTuner(net(), device="cpu").fit(blobs(), checkpoint_dir=tmp_path / "runs", callbacks=Second())
    FineTuner(net(), device="cpu").fit(blobs(), checkpoint_dir=tmp_path / "runs")  # the lock ends with the run


def test_a_callback_that_writes_to_the_folder_is_the_only_one(net, blobs, tmp_path) -> None:
    own = ModelCheckpoint(tmp_path, keep=1)
    FineTuner(net(), device="cpu").fit(blobs(), checkpoint_dir=tmp_path, callbacks=own)

    assert names(tmp_path) == ["best.safetensors", "epoch-0001.safetensors", "last.safetensors"]
