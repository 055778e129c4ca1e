"""A metric that is a function of all outputs and targets of a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat


class FunctionMetric(torchmetrics.Metric):
    """A metric that calls a function once per pass, with outputs as `predict` returns them.

    Args:
        function: Function of outputs [N, ...] and targets [N, ...] that returns a number. Its attribute
            `higher_is_better`, if there is one, decides which way is better.
    """

    outputs: list[Tensor]
    targets: list[Tensor]
    full_state_update = False
    takes_outputs = True

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.add_state("outputs", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """Whether the function says that a higher value is better; None if it does not say."""
        return getattr(self.function, "higher_is_better", None)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        self.outputs.append(outputs)
        self.targets.append(targets)

    def compute(self) -> Any:
        """Return the value over all batches."""
        return self.function(dim_zero_cat(self.outputs).cpu(), dim_zero_cat(self.targets).cpu())
