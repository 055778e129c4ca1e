"""`Report`: the report of a model at the end of its training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from finetune.errors import ArgumentError, FineTuneError
from finetune.naming.paths import local_path
from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.loggers.places import check_path
from finetune.training.run import Run

log = logging.getLogger("finetune")


class Report(Callback):
    """Write `FineTuner.report` at the end of `fit`, with the weights that it returns.

    A run that ends with an error or by a signal writes none. If the report fails, as on a full disk, a warning says so,
    and the trained model is not lost.

    Args:
        path: File to write, such as `"report.html"`.
        data: Labeled data in any form that `fit` accepts. None uses the validation data of the run.

    Raises:
        ArgumentError: At the start of `fit`, if the file cannot be written, or the run has no validation data and
            `data` is None.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> tuner, data = FineTuner(torch.nn.Linear(4, 2), device="cpu"), (torch.randn(8, 4), torch.arange(8) % 2)
        >>> history = tuner.fit(data, data, callbacks=[Report("report.html")])
        >>> Path("report.html").exists()
        True
    """

    saves_run = True  # after the callbacks that choose the final weights
    only_watches = True

    def __init__(self, path: str | Path, data: Any = None) -> None:
        self.path = local_path(path)
        self.data = data

    def on_fit_begin(self, run: Run) -> None:
        if self.data is None and run.val is None:
            raise ArgumentError(
                "The report needs labeled data, and the run has no validation data. Pass val=... to fit, or "
                f"Report({str(self.path)!r}, data=...)."
            )
        check_path(self.path, "a file")

    def on_fit_end(self, run: Run) -> None:
        if run.position.phase < len(run.phases):  # an error or a signal ended it
            return
        data = self.data if self.data is not None or run.val is None else run.val.source
        try:
            run.tuner.report(self.path, data, train=run.train.source, batch_size=run.train.batch_size)
        except (FineTuneError, OSError) as error:
            log.warning("The report was not written: %s", error)
        else:
            log.info("wrote %s", self.path)
