"""The history written to a file as it grows."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import ArgumentError
from finetune.training.callbacks.base import Callback
from finetune.training.run import Run


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


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    rates = {f"lr/{name}": rate for name, rate in row["lr"].items()}
    return {key: value for key, value in row.items() if key != "lr"} | rates
