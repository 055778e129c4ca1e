"""Callbacks: what happens at the edges of epochs and steps, without touching the loop.

Hooks have Keras's names where Keras has them. Each gets the `Run`: `run.row` is the epoch's row of
history, `run.history` all of them, `run.model` the model, and `run.end_phase = True` ends the phase.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import ArgumentError, CheckpointError, nearest
from finetune.training.metrics import higher_is_better
from finetune.training.state import Run, restore, snapshot


class Callback:
    """Base class; override the hooks you need, each `(self, run) -> None`.

    Attributes:
        saves_run: it writes the run to a file, so its hooks come after those of the other callbacks.
    """

    saves_run = False

    def on_fit_begin(self, run: Run) -> None:
        """Run before anything is trained."""

    def on_phase_begin(self, run: Run) -> None:
        """Run when a phase's optimizer is ready."""

    def on_epoch_begin(self, run: Run) -> None:
        """Run before the first batch of an epoch."""

    def on_step_end(self, run: Run) -> None:
        """Run after every optimizer update. Reading a tensor here makes the host wait for the device."""

    def on_evaluate_end(self, run: Run) -> None:
        """Run when the epoch's validation values are in `run.row`."""

    def on_epoch_end(self, run: Run) -> None:
        """Run when the epoch's row is in the history."""

    def on_phase_end(self, run: Run) -> None:
        """Run after the last epoch of a phase."""

    def on_fit_end(self, run: Run) -> None:
        """Run at the end of `fit`, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers, strings, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take such a state back."""


class EarlyStopping(Callback):
    """End a phase when the monitored value has not improved for a while, and restore the best weights.

    Args:
        monitor: a key of the history's rows.
        patience: how many epochs without improvement are allowed.
        min_delta: what counts as improvement.
        restore_best: put the weights of the phase's best epoch back at its end.

    Raises:
        ArgumentError: before training, if this run will have no such value.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.restore_best = restore_best
        self.best, self.waited = math.inf, 0
        self.best_weights: Mapping[str, Any] | None = None

    def on_fit_begin(self, run: Run) -> None:
        _check_monitor(self.monitor, run.monitored_names())

    def on_phase_begin(self, run: Run) -> None:
        if run.position.epoch == 0:  # a resumed phase goes on with what it had
            self.best, self.waited, self.best_weights = math.inf, 0, None

    def on_epoch_end(self, run: Run) -> None:
        value = _monitored(run, self.monitor)
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            self.best_weights = snapshot(run.model) if self.restore_best else None
        else:
            self.waited += 1
            run.end_phase = run.end_phase or self.waited >= self.patience

    def on_phase_end(self, run: Run) -> None:
        if self.best_weights is not None:
            restore(run.model, self.best_weights)
            self.best_weights = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "best_weights": self.best_weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.best, self.waited = state["best"], state["waited"]
            self.best_weights = state["best_weights"]


class ModelCheckpoint(Callback):
    """Keep `last.safetensors` and `best.safetensors` in a folder.

    `last` is written after every epoch and can be resumed from; `best` is the model of the epoch with
    the best monitored value, a value that is not a number never being one.

    Args:
        folder: where; it is made if it is not there.
        monitor: a key of the history's rows; None for `val_loss`, or `loss` without validation data.
        keep: how many numbered checkpoints to keep beside the two, the newest of them.
        every_steps: also write `last` after so many updates, so that less is lost.
    """

    saves_run = True

    def __init__(
        self, folder: str | Path, monitor: str | None = None, keep: int = 0, every_steps: int | None = None
    ) -> None:
        self.folder = Path(folder)
        self.monitor = monitor
        self.keep = keep
        self.every_steps = every_steps
        self.best = math.inf

    def on_fit_begin(self, run: Run) -> None:
        if self.monitor is not None:
            _check_monitor(self.monitor, run.monitored_names())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"Checkpoints cannot be kept in {self.folder}: {error}.") from error

    def on_step_end(self, run: Run) -> None:
        if self.every_steps and run.position.step % self.every_steps == 0:
            run.save(self.folder / "last.safetensors")

    def on_epoch_end(self, run: Run) -> None:
        value = _monitored(run, self.monitor or ("loss" if run.val is None else "val_loss"))
        if value < self.best:
            self.best = value
            run.save(self.folder / "best.safetensors", training_state=False)
        run.save(self.folder / "last.safetensors")
        if self.keep:
            run.save(self.folder / f"epoch-{run.epoch:04d}.safetensors")
            numbered = sorted(self.folder.glob("epoch-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
            for old in numbered[: -self.keep]:
                old.unlink()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = state.get("best", self.best)


class CSVLogger(Callback):
    """Write the history to a CSV file, a line an epoch; rates become columns `lr/GROUP`.

    Args:
        path: the file; it is written anew with every epoch, so that it is always whole.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_epoch_end(self, run: Run) -> None:
        rows = [_flat(row) for row in run.history]
        columns = dict.fromkeys(key for row in rows for key in row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


class TensorBoard(Callback):
    """Write every number of the history to TensorBoard's event files; needs the package `tensorboard`.

    Args:
        folder: where the event files go.

    Raises:
        ArgumentError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ArgumentError(
                "The TensorBoard callback needs the package tensorboard: pip install tensorboard."
            ) from error
        self.writer = SummaryWriter(str(folder))

    def on_epoch_end(self, run: Run) -> None:
        for key, value in _flat(run.row).items():
            if isinstance(value, (int, float)) and key != "epoch":
                self.writer.add_scalar(key, value, run.row["epoch"])
        self.writer.flush()

    def on_fit_end(self, run: Run) -> None:
        self.writer.close()  # it opens a new file should there be another fit


def _check_monitor(monitor: str, names: Iterable[str]) -> None:
    names = list(names)
    if monitor not in names:
        raise ArgumentError(
            f"There is no value {monitor!r} to monitor.{nearest(monitor, names)} This run has {', '.join(names)}; "
            f"for val_... give fit validation data."
        )


def _monitored(run: Run, monitor: str) -> float:
    """Return the monitored value such that less is better."""
    _check_monitor(monitor, [key for key, value in run.row.items() if isinstance(value, float)])
    value = float(run.row[monitor])
    return -value if higher_is_better(monitor, run.metrics) else value


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    rates = {f"lr/{name}": rate for name, rate in row["lr"].items()}
    return {key: value for key, value in row.items() if key != "lr"} | rates
