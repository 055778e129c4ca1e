"""The settings of a `FineTuner` that stay the same across calls of `fit`."""

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
    """The keyword arguments of `FineTuner` that training reads.

    Attributes:
        loss: `"cross_entropy"`, `"bce"`, `"mse"` or a function of outputs and targets; None infers it from the targets.
        metrics: Names, torchmetrics objects, or a mapping of name to either; None for the defaults of the task.
        optimizer: Name from `OPTIMIZERS`, or a function of parameter groups such as `torch.optim.Adam`.
        weight_decay: Weight decay for all parameters but biases and norm weights.
        max_grad_norm: Maximum norm of the gradients, clipped once per update; None does not clip.
        gradient_accumulation_steps: Number of batches per update.
        precision: `"fp32"`, `"bf16"`, `"fp16"`, or `"auto"` for the best that the device supports.
        compile: Whether to use `torch.compile`, or the name of its backend.
        seed: Seed for every random choice.

    Raises:
        ArgumentError: If a value is out of range.

    Example:
        >>> Settings(optimizer="sgd", max_grad_norm=1.0).weight_decay
        0.01
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
                f"Expected gradient_accumulation_steps to be a whole number of at least 1, but got "
                f"{self.gradient_accumulation_steps!r}."
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ArgumentError(f"Expected max_grad_norm to be above 0 or None, but got {self.max_grad_norm!r}.")
        if not self.weight_decay >= 0:
            raise ArgumentError(f"Expected weight_decay to be 0 or above, but got {self.weight_decay!r}.")

    @property
    def backend(self) -> str | None:
        """Backend of `torch.compile`; None if the model is not compiled."""
        return "inductor" if self.compile is True else self.compile or None

    def plain(self) -> dict[str, Any]:
        """Return the settings that a checkpoint can hold, without functions and other objects.

        Example:
            >>> Settings(loss=lambda outputs, targets: outputs.mean()).plain()["optimizer"]
            'adamw'
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
