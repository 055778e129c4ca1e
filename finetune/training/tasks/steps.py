"""`Steps`: the part of a `FineTuner` that a run calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from finetune.checkpoint.schema import Checkpoint
from finetune.training.history import History
from finetune.training.metrics import StepOutput


class Steps(Protocol):
    """The part of `FineTuner` that a run calls."""

    @property
    def inner(self) -> nn.Module:
        """Model without wrappers."""

    @property
    def history(self) -> History:
        """Rows of all finished epochs."""

    def training_step(self, batch: Any) -> Tensor | StepOutput:
        """Return the loss of a training batch."""

    def validation_step(self, batch: Any) -> Tensor | StepOutput:
        """Return the loss of a validation batch."""

    def report(self, path: str | Path, data: Any, *, train: Any = None, batch_size: int = 32) -> Path:
        """Write a report."""

    def _checkpoint(self, training: dict[str, Any] | None) -> Checkpoint:
        """Return the content of a checkpoint with this training state."""

    def _overrides(self, *names: str) -> bool:
        """Return whether one of these steps is a custom one."""
