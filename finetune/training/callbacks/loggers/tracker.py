"""`Tracker`: what the loggers to trackers of experiments share. Each call of `fit` is a run there."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from finetune.errors import ArgumentError, is_number, reason
from finetune.training.callbacks.loggers.description import best_values, described
from finetune.training.callbacks.loggers.logger import Logger, flat_row
from finetune.training.run import Run

if TYPE_CHECKING:
    from typing_extensions import Self

Status = Literal["finished", "interrupted", "failed"]

MODEL_FILE = "model.safetensors"  # name of the final checkpoint among the files of a run


class Tracker(Logger):
    """Base class for loggers that open a run at a tracker of experiments for each call of `fit`.

    A resumed `fit` continues the run that the checkpoint names.

    Args:
        name: Name of the run. None leaves it to the tracker.
        group: Name that related runs share.
        log_model: Whether to store the final checkpoint in the run.
    """

    _state_form: ClassVar = {"step": int, "run_id": str, "first_row": int}

    def __init__(self, name: str | None, group: str | None, *, log_model: bool) -> None:
        self.name, self.group, self.log_model = name, group, log_model
        self.run_id: str | None = None
        self._labels: Mapping[str, Any] = {}
        self._resumes = self._interrupted = False
        self._first_row = 0  # of the history, that belongs to the run

    @abstractmethod
    def _open(self, config: Mapping[str, Any]) -> str:
        """Open a run, or continue `run_id` if it is set, and return its identifier."""

    @abstractmethod
    def _log(self, values: Mapping[str, float], epoch: int, phase: str) -> None:
        """Log the values of an epoch."""

    @abstractmethod
    def _store(self, file: Path) -> None:
        """Store a copy of a file in the run."""

    @abstractmethod
    def _close(self, status: Status, best: Mapping[str, float]) -> None:
        """Log the best values, and end the run."""

    def for_run(self, name: str, *, group: str, **labels: Any) -> Self:
        """Return a logger whose run has this name and these labels. Its group is that of this logger, if it has one."""
        one = copy(self)
        one.name, one.group, one._labels = name, self.group or group, labels
        return one

    def on_fit_begin(self, run: Run) -> None:
        if not self._resumes:
            self.run_id, self._first_row = None, len(run.history)
        self._resumes = self._interrupted = False
        with self._failure_explained():
            self.run_id = self._open({**described(run), **self._labels})

    def on_epoch_end(self, run: Run) -> None:
        values = {key: value for key, value in flat_row(run.row).items() if is_number(value) and key != "epoch"}
        self._logged(run, lambda: self._log(values, run.row["epoch"], run.phase.name))

    def on_interrupt(self, run: Run) -> None:
        self._interrupted = True

    def on_fit_end(self, run: Run) -> None:
        if self.run_id is None:
            return  # another callback has failed before the run was opened
        finished = run.position.phase >= len(run.phases)
        status: Status = "finished" if finished else "interrupted" if self._interrupted else "failed"
        if finished and self.log_model:
            self._logged(run, lambda: self._store_model(run))
        self._logged(run, lambda: self._close(status, best_values(run, self._first_row)))
        self.run_id = None

    def _store_model(self, run: Run) -> None:
        with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
            self._store(run.save(Path(folder) / MODEL_FILE, training_state=False))

    @contextmanager
    def _failure_explained(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise ArgumentError(f"{type(self).__name__} cannot open a run: {reason(error)}") from error

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "run_id": self.run_id or "", "first_row": self._first_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.run_id, self._first_row = state.get("run_id") or None, state.get("first_row", 0)
        self._resumes = self.run_id is not None
