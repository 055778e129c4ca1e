"""Checkpoints during training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError, whole_number
from finetune.naming.paths import local_path
from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.monitor import check_monitor, monitored
from finetune.training.run import Run


class ModelCheckpoint(Callback):
    """Keep `last.safetensors` and `best.safetensors` in a folder.

    `last` is written after every epoch, and runs resume from it. `best` holds the model of the epoch with the best
    monitored value; NaN is never the best.

    Args:
        folder: Folder of the checkpoints, created if missing.
        monitor: Value to monitor, a key of the history's rows; None for `val_loss`, or `loss` without validation data.
        keep: Number of additional checkpoints to keep, the most recent ones, named by epoch.
        every_steps: Number of optimizer updates after which `last` is also written; None writes it only every epoch.
        mode: `"max"` if a higher value is better, `"min"` if a lower one is; None if the metric says so itself.

    Raises:
        ArgumentError: At the start of `fit`, if the run has no value `monitor`, or it is unknown which way it improves.
        CheckpointError: At the start of `fit`, if the folder cannot be created.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> tuner, data = FineTuner(torch.nn.Linear(4, 2), device="cpu"), (torch.randn(8, 4), torch.arange(8) % 2)
        >>> history = tuner.fit(data, epochs=3, callbacks=[ModelCheckpoint("checkpoints", keep=1)])
        >>> sorted(path.name for path in Path("checkpoints").iterdir())
        ['best.safetensors', 'epoch-0003.safetensors', 'last.safetensors']
    """

    saves_run = True

    def __init__(
        self,
        folder: str | Path,
        monitor: str | None = None,
        keep: int = 0,
        every_steps: int | None = None,
        mode: str | None = None,
    ) -> None:
        self.folder = local_path(folder)
        self.monitor = monitor
        self.keep = whole_number("keep", keep, at_least=0)
        self.every_steps = None if every_steps is None else whole_number("every_steps", every_steps, at_least=0)
        self.mode = mode
        self.best = math.inf

    def on_fit_begin(self, run: Run) -> None:
        check_monitor(run, self._monitor(run), self.mode)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints cannot be kept in {self.folder}: {error}. Choose a writable folder."
            ) from error

    def on_step_end(self, run: Run) -> None:
        if self.every_steps and run.position.step % self.every_steps == 0:
            run.save(self.folder / "last.safetensors")

    def on_epoch_end(self, run: Run) -> None:
        value = monitored(run, self._monitor(run), self.mode)
        if value < self.best:
            self.best = value
            run.save(self.folder / "best.safetensors", training_state=False)
        run.save(self.folder / "last.safetensors")
        if self.keep:
            run.save(self.folder / f"epoch-{run.epoch:04d}.safetensors")
            numbered = sorted(self.folder.glob("epoch-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
            for old in numbered[: -self.keep]:
                old.unlink()

    def _monitor(self, run: Run) -> str:
        return self.monitor or ("loss" if run.val is None else "val_loss")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = state.get("best", self.best)
