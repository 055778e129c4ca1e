"""`Logger`, `CSVLogger` and `TensorBoard`."""

from __future__ import annotations

import csv
import errno
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune import FineTuner, Phase, StepOutput
from finetune.callbacks import CSVLogger, Logger, TensorBoard
from finetune.errors import ArgumentError
from tests.helpers.files import SPECIAL, make_special
from tests.helpers.tensors import NoTensorOperations


def test_the_csv_file_holds_the_history(net, blobs, tmp_path) -> None:
    path = tmp_path / "new" / "log.csv"
    history = FineTuner(net(), device="cpu").fit(
        blobs(), blobs(9), strategy=[Phase("6", 2, name="head"), Phase("*", 1, (1e-4, 1e-3), name="all")],
        callbacks=[CSVLogger(path)],
    )  # fmt: skip

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert list(rows[0])[:6] == ["epoch", "phase", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert [row["phase"] for row in rows] == ["head", "head", "all"]
    for written, row in zip(rows, history, strict=True):
        assert float(written["val_loss"]) == row["val_loss"]
        rates = {key[3:]: float(value) for key, value in written.items() if key.startswith("lr/") and value}
        assert rates == row["lr"]
    assert rows[0]["lr/0"] == ""


def test_without_tensorboard_the_error_names_the_package_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    with pytest.raises(ArgumentError, match="needs the tensorboard package: pip install tensorboard"):
        TensorBoard(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own imports
def test_tensorboard_gets_every_number(net, blobs, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(tmp_path)
    tuner = FineTuner(net(), device="cpu")
    tuner.fit(blobs(), blobs(9), epochs=2, callbacks=[logger])
    tuner.fit(blobs(), blobs(9), epochs=1, callbacks=[logger])

    events = EventAccumulator(str(tmp_path)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "seconds", "lr/6"} <= tags
    assert not {"epoch", "phase"} & tags
    assert [(e.step, e.value) for e in events.Scalars("val_loss")] == [
        (row["epoch"], pytest.approx(row["val_loss"])) for row in tuner.history
    ]


class Wandb(Logger):
    """Collect the values that a client of a tracking service would send."""

    every_n_steps = 2

    def __init__(self) -> None:
        self.steps: dict[int, tuple[Tensor, dict[str, float]]] = {}
        self.epochs: dict[int, dict[str, Any]] = {}

    def log_step(self, step: int, loss: Tensor, lr: Mapping[str, float]) -> None:
        self.steps[step] = loss, dict(lr)

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        self.epochs[self.step] = dict(row)


def test_a_custom_logger_gets_loss_and_rates_of_the_steps_it_asks_for(net, blobs, watch, tmp_path) -> None:
    class Losses(FineTuner):
        losses: tuple[Tensor, ...] = ()

        def training_step(self, batch: Any) -> StepOutput:
            output = super().training_step(batch)
            self.losses += (output.loss.detach(),)
            return output

    logger, seen, tuner = Wandb(), watch(), Losses(net(), device="cpu", gradient_accumulation_steps=2)
    phases = [Phase("6", 1), Phase("*", 1)]

    history = tuner.fit(blobs(), strategy=phases, batch_size=4, callbacks=[logger, seen], checkpoint_dir=tmp_path)

    losses = torch.stack(tuner.losses).reshape(-1, 2).mean(1)
    assert list(logger.steps) == [2, 4, 6]
    for step, (loss, lr) in logger.steps.items():
        assert not loss.requires_grad
        torch.testing.assert_close(loss, losses[step - 1])
        assert lr == seen.rates[step - 1]
    assert list(logger.epochs) == [3, 6]
    assert [row["loss"] for row in logger.epochs.values()] == [row["loss"] for row in history]
    assert all(row["lr/6"] == kept["lr"]["6"] for row, kept in zip(logger.epochs.values(), history, strict=True))

    resumed = Wandb()
    Losses(net(), device="cpu", gradient_accumulation_steps=2).fit(
        blobs(), strategy=[*phases, Phase("*", 1)], batch_size=4, callbacks=[resumed, watch()], resume_from=tmp_path
    )
    assert list(resumed.steps) == [8]


def test_logging_a_step_does_not_wait_for_the_device(net, blobs) -> None:
    class Guarded(Wandb):
        every_n_steps = 1

        def on_step_end(self, run: Any) -> None:
            with NoTensorOperations():
                super().on_step_end(run)

    logger = Guarded()
    FineTuner(net(), device="cpu").fit(blobs(), batch_size=8, callbacks=[logger])

    assert list(logger.steps) == [1, 2, 3]


def test_a_full_disk_under_a_logger_does_not_end_the_run(net, blobs, tmp_path, caplog) -> None:
    class Full(CSVLogger):
        def log_epoch(self, row: Mapping[str, Any]) -> None:
            super().log_epoch(row)
            raise OSError(errno.ENOSPC, "No space left on device")

    history = FineTuner(net(), device="cpu").fit(
        blobs(), epochs=3, callbacks=[Full(tmp_path / "log.csv")], checkpoint_dir=tmp_path
    )

    assert len(history) == 3
    assert (tmp_path / "last.safetensors").exists()
    assert caplog.text.count("Full could not log, and the run goes on without it: [Errno 28] No space left") == 1


def test_a_csv_file_that_cannot_be_written_keeps_its_lines(net, blobs, tmp_path, monkeypatch) -> None:
    path, tuner = tmp_path / "log.csv", FineTuner(net(), device="cpu")
    tuner.fit(blobs(), callbacks=[CSVLogger(path)])
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    tuner.fit(blobs(), callbacks=[CSVLogger(path)])

    assert path.read_bytes() == before
    assert len(tuner.history) == 2


def test_an_error_in_the_code_of_a_logger_is_raised(net, blobs) -> None:
    class Broken(Logger):
        def log_epoch(self, row: Mapping[str, Any]) -> None:
            raise KeyError("row")

    with pytest.raises(KeyError, match="row"):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[Broken()])


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_csv_file_that_cannot_be_written_is_found_before_the_first_step(net, blobs, watch, tmp_path, kind) -> None:
    seen = watch()
    make_special(tmp_path / "log.csv", kind)
    with pytest.raises(ArgumentError, match=rf"log\.csv cannot be written: .*{kind}"):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[CSVLogger(tmp_path / "log.csv"), seen])
    assert "on_step_end" not in seen.hooks


def test_a_folder_for_tensorboard_that_cannot_be_written_is_said_at_once(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "tb"):
        with pytest.raises(ArgumentError, match=rf"{folder}.* cannot be written: .*Expected the path of a folder"):
            TensorBoard(folder)
