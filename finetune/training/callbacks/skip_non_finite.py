"""Skip updates that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from finetune.errors import NonFiniteError, whole_number
from finetune.training.callbacks.base import Callback
from finetune.training.resuming.position import Position
from finetune.training.run import Run

log = logging.getLogger("finetune")


class SkipNonFinite(Callback):
    """Skip an update whose loss or gradient is NaN or infinite, instead of ending the run.

    Weights, optimizer and batch statistics stay as before the update, its samples count in no metric, and the schedule
    does not advance. The value `skipped_steps` of each row of the history is the number of skipped updates; updates
    that gradient scaling skips in fp16 are not among them. The host waits for the device at every update.

    Args:
        limit: Number of updates in a row that may be skipped. The next one is an error.

    Raises:
        NonFiniteError: During `fit`, if more updates in a row are not finite, or if weights are not.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> class OftenBroken(FineTuner):
        ...     def training_step(self, batch):
        ...         return super().training_step(batch).loss / (batch[1].sum() > 0)
        >>> data = torch.randn(8, 4), torch.arange(8) // 4
        >>> tuner = OftenBroken(torch.nn.Linear(4, 2), device="cpu")
        >>> history = tuner.fit(data, batch_size=1, callbacks=[SkipNonFinite()])
        >>> history[0]["skipped_steps"]
        4
    """

    _state_form: ClassVar = {"skipped": int, "in_a_row": int}

    def __init__(self, limit: int = 10) -> None:
        self.limit = whole_number("limit", limit)
        self.skipped, self.in_a_row = 0, 0

    def on_fit_begin(self, run: Run) -> None:
        if run.position == Position():  # otherwise a resumed run continues
            self.in_a_row = 0

    def on_epoch_begin(self, run: Run) -> None:
        if run.position.window == 0:  # otherwise a resumed epoch continues
            self.skipped = 0

    def skip_update(self, run: Run, error: NonFiniteError) -> bool:
        if self.in_a_row == self.limit:
            return False
        if self.skipped == 0:
            log.warning("Skipped an update. %s", error)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        return True

    def on_step_end(self, run: Run) -> None:
        self.in_a_row = 0

    def on_evaluate_begin(self, run: Run) -> None:
        run.row["skipped_steps"] = self.skipped

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.skipped, self.in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)
