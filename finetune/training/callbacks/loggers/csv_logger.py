"""`CSVLogger`: the history as a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.files.durable import written
from finetune.naming.paths import local_path
from finetune.training.callbacks.loggers.logger import Logger, flat_row
from finetune.training.callbacks.loggers.places import check_path, file_name
from finetune.training.run import Run


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

    def for_run(self, name: str, *, group: str, **labels: Any) -> CSVLogger:
        """Return a logger with a file of its own: `log.csv` becomes `log-NAME.csv`."""
        return CSVLogger(self.path.with_stem(f"{self.path.stem}-{file_name(name)}"))

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
