"""Loggers: callbacks that write the numbers of a run elsewhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from finetune.errors import ArgumentError, is_number
from finetune.files.durable import check_writable, written
from finetune.naming.paths import local_path
from finetune.training.callbacks.base import Callback
from finetune.training.run import Run


class Logger(Callback):
    """Base class for loggers. Override `log_epoch`, `log_step` or both.

    A logger never ends a run: if a file or a connection fails with an OSError, a warning says so once.

    Attributes:
        every_n_steps: Number of optimizer updates between calls of `log_step`. None (default) never calls it.
        step: Number of optimizer updates so far, over all phases. It continues in a resumed run.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> class StepLosses(Logger):
        ...     every_n_steps = 2
        ...     losses = {}
        ...     def log_step(self, step, loss, lr):
        ...         self.losses[step] = loss
        >>> logger, data = StepLosses(), (torch.randn(16, 4), torch.arange(16) % 2)
        >>> history = FineTuner(torch.nn.Linear(4, 2), device="cpu").fit(data, batch_size=4, callbacks=[logger])
        >>> list(logger.losses)
        [2, 4]
    """

    only_watches = True
    _state_form: ClassVar = {"step": int}

    every_n_steps: int | None = None
    step = 0

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Log an epoch.

        Args:
            row: Row of the history without nesting: the learning rates are columns `lr/GROUP` and `lr_start/GROUP`.
        """

    def log_step(self, step: int, loss: Tensor, lr: Mapping[str, float]) -> None:
        """Log an optimizer update.

        Args:
            step: Number of updates so far, from 1.
            loss: Scalar training loss, detached and still on the device. `float(loss)` waits for the device, so keep
                the tensors and read them together if possible.
            lr: Learning rates of this update by parameter group.
        """

    def on_step_end(self, run: Run) -> None:
        self.step += 1
        if self.every_n_steps and self.step % self.every_n_steps == 0:
            self._logged(run, lambda: self.log_step(self.step, run.loss, run.rates()))

    def on_epoch_end(self, run: Run) -> None:
        self._logged(run, lambda: self.log_epoch(flat_row(run.row)))

    def _logged(self, run: Run, log: Callable[[], None]) -> None:
        """Call a function that logs, and warn if it fails as a full disk or a lost connection does."""
        try:
            log()
        except OSError as error:
            run.warn_once(f"{type(self).__name__} could not log, and the run goes on without it: {error}.")

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state.get("step", 0)


class CSVLogger(Logger):
    """Write the history to a CSV file, one line per epoch.

    Args:
        path: Path of the file. The whole file is rewritten after every epoch, because later epochs can add columns.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> data = torch.randn(8, 4), torch.arange(8) % 2
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> history = FineTuner(model, device="cpu").fit(data, callbacks=[CSVLogger("run/log.csv")])
        >>> Path("run/log.csv").read_text().splitlines()[0]
        'epoch,phase,loss,accuracy,seconds,samples_per_second,lr/0,lr/1,lr_start/0,lr_start/1'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(path)
        self._rows: list[Mapping[str, Any]] = []

    def on_fit_begin(self, run: Run) -> None:
        check_path(self.path, "a file")
        self._rows = [flat_row(row) for row in run.history]  # epochs of earlier calls of fit or before a resume

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        columns = dict.fromkeys(key for row in self._rows for key in row)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self._rows)
        with written(self.path) as file:
            file.write(text.getvalue().encode())


class TensorBoard(Logger):
    """Write every number of the history to TensorBoard event files. Requires the `tensorboard` package.

    Args:
        folder: Folder of the event files.

    Raises:
        ArgumentError: If tensorboard is not installed, or the folder cannot be written.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> data = torch.randn(8, 4), torch.arange(8) % 2
        >>> history = FineTuner(torch.nn.Linear(4, 2), device="cpu").fit(data, callbacks=[TensorBoard("run")])
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ArgumentError(
                "The TensorBoard callback needs the tensorboard package: pip install tensorboard."
            ) from error
        path = local_path(folder)
        check_path(path / "events", "a folder")  # before tensorboard does, whose errors are of several types
        self.writer = SummaryWriter(str(path))

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        for key, value in row.items():
            if is_number(value) and key != "epoch":
                self.writer.add_scalar(key, value, row["epoch"])
        self.writer.flush()

    def on_fit_end(self, run: Run) -> None:
        self._logged(run, self.writer.close)  # another fit opens a new file


def check_path(path: Path, kind: str) -> None:
    """Check that a file can be written.

    Raises:
        ArgumentError: If it cannot, because the path is not that of `kind`, such as `"a file"`.
    """
    try:
        check_writable(path)
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error}. Expected the path of {kind}.") from error


def flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the history without nesting: `lr` becomes columns `lr/GROUP`."""
    nested = {key: value for key, value in row.items() if isinstance(value, Mapping)}
    parts = {f"{key}/{name}": part for key, values in nested.items() for name, part in values.items()}
    return {key: value for key, value in row.items() if key not in nested} | parts
