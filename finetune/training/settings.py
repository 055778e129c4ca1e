"""What stays the same from one `fit` to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from finetune.errors import ArgumentError
from finetune.training.metrics import Metrics
from finetune.training.optim.optimizers import OptimizerFactory
from finetune.training.tasks import Loss


@dataclass(frozen=True)
class Settings:
    """The keyword arguments of `FineTuner` that training reads; see there.

    Raises:
        ArgumentError: one has a value that cannot work.
    """

    loss: str | Loss | None = None
    metrics: Metrics = None
    optimizer: str | OptimizerFactory = "adamw"
    weight_decay: float = 0.01
    max_grad_norm: float | None = None
    gradient_accumulation_steps: int = 1
    precision: str = "auto"
    compile: bool | str = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.gradient_accumulation_steps, int) or self.gradient_accumulation_steps < 1:
            raise ArgumentError(
                f"Expected gradient_accumulation_steps to be a whole number from 1 on, but got "
                f"{self.gradient_accumulation_steps!r}."
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ArgumentError(f"Expected max_grad_norm to be above 0 or None, but got {self.max_grad_norm!r}.")
        if not self.weight_decay >= 0:
            raise ArgumentError(f"Expected weight_decay to be 0 or above, but got {self.weight_decay!r}.")

    @property
    def backend(self) -> str | None:
        """The backend of `torch.compile`, None to compile nothing."""
        return "inductor" if self.compile is True else self.compile or None

    def plain(self) -> dict[str, Any]:
        """Return the settings that a file can hold; functions and objects are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
