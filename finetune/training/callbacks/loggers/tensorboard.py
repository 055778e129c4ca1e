"""`TensorBoard`: the history as event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import ArgumentError, is_number
from finetune.naming.paths import local_path
from finetune.training.callbacks.loggers.logger import Logger
from finetune.training.callbacks.loggers.places import check_path, file_name
from finetune.training.run import Run


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
        self.folder = path
        self.writer = SummaryWriter(str(path))

    def for_run(self, name: str, *, group: str, **labels: Any) -> TensorBoard:
        """Return a logger with a folder of its own within this one, which TensorBoard shows as a run."""
        return TensorBoard(self.folder / file_name(name))

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        for key, value in row.items():
            if is_number(value) and key != "epoch":
                self.writer.add_scalar(key, value, row["epoch"])
        self.writer.flush()

    def on_fit_end(self, run: Run) -> None:
        self._logged(run, self.writer.close)  # another fit opens a new file
