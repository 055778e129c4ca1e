"""Checkpoints during training."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from finetune.checkpoint.file import check_writable, remove
from finetune.checkpoint.resume import BEST, LAST, NUMBERED, PREVIOUS, check_not_newer
from finetune.distributed.divided import check_divided
from finetune.distributed.world import ALONE, World, joined
from finetune.errors import CheckpointError, whole_number
from finetune.files.locks import folder_locked
from finetune.naming.paths import local_path
from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.monitor import check_monitor, monitored
from finetune.training.resuming.position import Position
from finetune.training.run import Run

log = logging.getLogger("finetune")


def with_writer(callbacks: Sequence[Callback], folder: str | Path | None, world: World = ALONE) -> list[Callback]:
    """Add a `ModelCheckpoint` for a folder, unless there is no folder or one of the callbacks writes to it.

    All processes write to the folders of the first, because a folder that is named by the time has several names.

    Example:
        >>> with_writer([], "runs")[0].folder.name
        'runs'
        >>> with_writer([ModelCheckpoint("runs", keep=2)], "runs")[0].keep
        2
    """
    writers = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    for writer in writers:
        writer.folder = world.agreed(writer.folder)
    own = [writer.folder.resolve() for writer in writers]
    if folder is None or local_path(folder).resolve() in own:
        return [*callbacks]
    return [*callbacks, ModelCheckpoint(folder)]


@contextmanager
def folders_locked(callbacks: Sequence[Callback]) -> Iterator[None]:
    """Keep other runs from writing to the folders of these callbacks.

    Raises:
        CheckpointError: If a folder cannot be written to, another run writes to it, or a file of a newer format is in
            the place of one of its files.

    Example:
        >>> with folders_locked([ModelCheckpoint("runs")]), folders_locked([ModelCheckpoint("runs")]):
        ...     pass
        Traceback (most recent call last):
        finetune.errors.CheckpointError: Another run is saving its checkpoints to runs. ...
    """
    with ExitStack() as stack:
        if not joined().leads:  # the first process writes for all
            yield
            return
        for folder in [callback.folder for callback in callbacks if isinstance(callback, ModelCheckpoint)]:
            try:
                stack.enter_context(folder_locked(folder))
            except BlockingIOError as error:
                raise CheckpointError(
                    f"Another run is saving its checkpoints to {folder}. Wait for its end, or choose another folder."
                ) from error
            except OSError as error:
                if not os.path.isdir(folder):
                    raise CheckpointError(
                        f"Checkpoints cannot be kept in {folder}: {error}. Choose a writable folder."
                    ) from error
                log.warning("%s cannot be locked, so another run that saves there is not noticed: %s.", folder, error)
            check_writable(folder / LAST)
            check_not_newer(folder)
        yield


class ModelCheckpoint(Callback):
    """Keep `last.safetensors` and `best.safetensors` in a folder.

    `last` is written after every epoch, and when a signal ends the run; runs resume from it. The one before is kept as
    `previous.safetensors`, in case `last` is damaged. `best` holds the model of the epoch with the best monitored
    value; NaN is never the best.

    Args:
        folder: Folder of the checkpoints, created if missing.
        monitor: Value to monitor, a key of the history's rows; None for `val_loss`, or `loss` without validation data.
        keep: Number of additional checkpoints to keep, the most recent ones, named by epoch.
        every_steps: Number of optimizer updates after which `last` is also written; None writes it only every epoch.
        mode: `"max"` if a higher value is better, `"min"` if a lower one is; None if the metric says so itself.
        sharded: Whether each process writes its own part of weights and optimizer state to a folder beside each file,
            for `FineTuner(..., distributed="fsdp")`. `finetune gather` makes a single file of both.

    Raises:
        ArgumentError: At the start of `fit`, if the run has no value `monitor`, it is unknown which way it improves, or
            `sharded` is set and the weights are not divided among processes.
        CheckpointError: At the start of `fit`, if the folder cannot be written to, or another run writes to it.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> tuner, data = FineTuner(torch.nn.Linear(4, 2), device="cpu"), (torch.randn(8, 4), torch.arange(8) % 2)
        >>> history = tuner.fit(data, epochs=3, callbacks=[ModelCheckpoint("checkpoints", keep=1)])
        >>> sorted(path.name for path in Path("checkpoints").iterdir())
        ['best.safetensors', 'epoch-0003.safetensors', 'last.safetensors', 'previous.safetensors']
    """

    saves_run = True

    _state_form: ClassVar = {"best": float}

    def __init__(
        self,
        folder: str | Path,
        monitor: str | None = None,
        keep: int = 0,
        every_steps: int | None = None,
        mode: str | None = None,
        *,
        sharded: bool = False,
    ) -> None:
        self.folder = local_path(folder)
        self.monitor = monitor
        self.keep = whole_number("keep", keep, at_least=0)
        self.every_steps = None if every_steps is None else whole_number("every_steps", every_steps, at_least=0)
        self.mode = mode
        self.sharded = sharded
        self.best = math.inf
        self._saved_at: Position | None = None

    def on_fit_begin(self, run: Run) -> None:
        check_monitor(run, self._monitor(run), self.mode)
        if self.sharded:
            check_divided(run.world.shards)
        self._saved_at = None

    def on_interrupt(self, run: Run) -> None:
        if self._saved_at != run.position:
            self._save_last(run)

    def on_step_end(self, run: Run) -> None:
        if self.every_steps and run.position.step % self.every_steps == 0:
            self._save_last(run)

    def on_epoch_end(self, run: Run) -> None:
        value = monitored(run, self._monitor(run), self.mode)
        if value < self.best:
            self.best = value
            run.save(self.folder / BEST, training_state=False, sharded=self.sharded)
        self._save_last(run)
        if self.keep:
            run.save(self.folder / f"epoch-{run.epoch:04d}.safetensors", sharded=self.sharded)
        if self.keep and run.world.leads:
            numbered = sorted(self.folder.glob(NUMBERED), key=lambda path: path.stat().st_mtime_ns)
            for old in numbered[: -self.keep]:
                remove(old)

    def _save_last(self, run: Run) -> None:
        run.save(self.folder / LAST, keep_as=self.folder / PREVIOUS, sharded=self.sharded)
        self._saved_at = replace(run.position)

    def _monitor(self, run: Run) -> str:
        return self.monitor or ("loss" if run.val is None else "val_loss")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = state.get("best", self.best)
