"""Early stopping."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from finetune.display.numbers import fixed
from finetune.errors import number, whole_number
from finetune.model.freezing import restore, snapshot
from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.monitor import check_monitor, monitored
from finetune.training.run import Run

log = logging.getLogger("finetune")


class EarlyStopping(Callback):
    """End a phase when the monitored value has stopped improving, and restore the best weights.

    Every phase starts with a new count. NaN is no improvement. A line in the log says when and why a phase ended, and
    which epoch's weights are back.

    Args:
        monitor: Value to monitor, a key of the history's rows.
        patience: Number of epochs without improvement after which the phase ends.
        min_delta: Smallest change that counts as an improvement.
        restore_best: Whether to restore the weights of the phase's best epoch at its end.
        mode: `"max"` if a higher value is better, `"min"` if a lower one is; None if the metric says so itself.

    Raises:
        ArgumentError: At the start of `fit`, if the run has no such value, or it is unknown which way it improves.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> tuner, data = FineTuner(torch.nn.Linear(4, 2), device="cpu"), (torch.randn(20, 4), torch.arange(20) % 2)
        >>> history = tuner.fit(data, val=0.5, epochs=9, callbacks=[EarlyStopping("val_accuracy", patience=1)])
    """

    _state_form: ClassVar = {
        "best": float,
        "waited": int,
        "best_epoch": int,
        "best_weights": (None, {...: Tensor}),
    }

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        restore_best: bool = True,
        mode: str | None = None,
    ) -> None:
        self.monitor = monitor
        self.patience = whole_number("patience", patience)
        self.min_delta = number("min_delta", min_delta, at_least=0)
        self.restore_best = restore_best
        self.mode = mode
        self.best, self.waited, self.best_epoch = math.inf, 0, 0
        self.best_weights: Mapping[str, Any] | None = None

    def on_fit_begin(self, run: Run) -> None:
        check_monitor(run, self.monitor, self.mode)

    def on_phase_begin(self, run: Run) -> None:
        if run.position.epoch == 0:  # otherwise a resumed phase continues
            self.best, self.waited, self.best_epoch, self.best_weights = math.inf, 0, 0, None

    def on_epoch_end(self, run: Run) -> None:
        value = monitored(run, self.monitor, self.mode)
        if value < self.best - self.min_delta:
            self.best, self.waited, self.best_epoch = value, 0, run.epoch
            self.best_weights = snapshot(run.model) if self.restore_best else None
        else:
            self.waited += 1
            run.end_phase = run.end_phase or self.waited >= self.patience

    def on_phase_end(self, run: Run) -> None:
        if self.best_epoch != run.epoch:
            log.info(self._describe(run))
        if self.best_weights is not None:
            restore(run.model, self.best_weights)
            if self.best_epoch != run.epoch:
                run.history[-1]["restored_epoch"] = self.best_epoch
            self.best_weights = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "waited": self.waited,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.best, self.waited = state["best"], state["waited"]
            self.best_epoch = state.get("best_epoch", 0)
            self.best_weights = state["best_weights"]

    def _describe(self, run: Run) -> str:
        """Return one line on the end of the phase: its reason, and the weights that remain."""
        stopped = f"Stopped after epoch {run.epoch}: " if self.waited >= self.patience else ""
        if not self.best_epoch:
            return f"{stopped}{self.monitor} was never a number, so the last weights stay."
        best = f"{self.monitor} was best in epoch {self.best_epoch} ({fixed(abs(self.best))})"
        return f"{stopped}{best}, whose weights are back." if self.restore_best else f"{stopped}{best}."
