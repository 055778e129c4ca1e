"""The settings of a `FineTuner` that stay the same across calls of `fit`."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from finetune.errors import ArgumentError, number, one_of, whole_number
from finetune.training.metrics import Metrics
from finetune.training.optim.optimizers import WEIGHT_DECAY, OptimizerFactory
from finetune.training.tasks import Loss

log = logging.getLogger("finetune")


@dataclass(frozen=True)
class Settings:
    """The keyword arguments of `FineTuner` that training reads.

    Attributes:
        loss: `"cross_entropy"`, `"bce"`, `"mse"` or a function of outputs and targets; None infers it from the targets.
        metrics: Names, torchmetrics objects, or a mapping of name to either; None for the defaults of the task.
        optimizer: Name from `OPTIMIZERS`, or a function of parameter groups such as `torch.optim.Adam`.
        weight_decay: Weight decay for all parameters but biases and norm weights. The default gives way to a factory's.
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
    weight_decay: float = WEIGHT_DECAY
    max_grad_norm: float | None = None
    gradient_accumulation_steps: int = 1
    precision: str = "auto"
    compile: bool | str = False
    seed: int = 0

    def __post_init__(self) -> None:
        clips = self.max_grad_norm not in (None, math.inf)
        plain = {
            "gradient_accumulation_steps": whole_number(
                "gradient_accumulation_steps", self.gradient_accumulation_steps
            ),
            "max_grad_norm": number("max_grad_norm", self.max_grad_norm, above=0) if clips else None,
            "weight_decay": number("weight_decay", self.weight_decay, at_least=0),
            "seed": whole_number("seed", self.seed, at_least=None),
        }
        if isinstance(self.loss, type):
            raise ArgumentError(
                f"Expected loss to be a name or a function of outputs and targets, but got the class "
                f"{self.loss.__name__}. Pass {self.loss.__name__}(), an instance."
            )
        if self.loss is not None and not isinstance(self.loss, str) and not callable(self.loss):
            raise ArgumentError(
                f"Expected loss to be a name or a function of outputs and targets, but got {self.loss!r:.100}."
            )
        backends = torch.compiler.list_backends(exclude_tags=()) if isinstance(self.compile, str) else ()
        if self.backend and backends:
            one_of("torch.compile backend", self.backend, backends, "True or False")
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Settings:
        return replace(self, **{name: deepcopy(value, memo) for name, value in vars(self).items()})

    def __getstate__(self) -> dict[str, Any]:
        """Return the values to pickle.

        Raises:
            ArgumentError: If one is a lambda or a function within another, which other processes cannot import.
        """
        for name, described in self.objects().items():
            if "<" in described:
                raise ArgumentError(
                    f"The tuner cannot be pickled with {name}={described}, which another process cannot import. "
                    "Expected functions that are defined at the top level of a module."
                )
        return vars(self)

    @property
    def backend(self) -> str | None:
        """Backend of `torch.compile`; None if the model is not compiled."""
        return "inductor" if self.compile is True else self.compile or None

    def check_loss(self) -> None:
        """Check by its signature that the loss can be called with outputs and targets.

        Raises:
            ArgumentError: If it needs other arguments, as `nn.GaussianNLLLoss` needs the variance.

        Example:
            >>> Settings(loss=torch.nn.TripletMarginLoss()).check_loss()
            Traceback (most recent call last):
            finetune.errors.ArgumentError: ...TripletMarginLoss...missing a required argument: 'negative'...
        """
        loss = self.loss
        if not callable(loss):
            return
        try:
            signature = inspect.signature(loss.forward if isinstance(loss, torch.nn.Module) else loss)
        except (TypeError, ValueError):  # compiled code has none
            return
        try:
            signature.bind(None, None)
        except TypeError as error:
            raise ArgumentError(
                f"The loss {getattr(loss, '__name__', type(loss).__name__)} cannot be called with outputs and targets: "
                f"{error}. Pass a function of the two, which may split the outputs: lambda outputs, targets: "
                f"torch.nn.functional.gaussian_nll_loss(outputs[:, 0], targets, outputs[:, 1].exp()). If the model "
                f"returns several results, override training_step."
            ) from error

    def plain(self) -> dict[str, Any]:
        """Return the settings that a checkpoint can hold, without functions and other objects.

        Example:
            >>> Settings(loss=lambda outputs, targets: outputs.mean()).plain()["optimizer"]
            'adamw'
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if _is_plain(value)}

    def objects(self) -> dict[str, str]:
        """Return the settings that a checkpoint cannot hold: name and description.

        Example:
            >>> Settings(loss=torch.nn.HuberLoss(), metrics={"error": torch.nn.L1Loss()}).objects()
            {'loss': 'HuberLoss', 'metrics': 'error (L1Loss)'}
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _described(value) for name, value in values.items() if not _is_plain(value)}

    def warn_of_lost(self, objects: Mapping[str, str], path: Any) -> None:
        """Warn of the `objects` of a checkpoint, as from `objects()`, in whose place these settings have defaults."""
        defaults = Settings()
        lost = [name for name in objects if getattr(self, name, None) == getattr(defaults, name, None)]
        if lost:
            log.warning(
                "%s was saved with %s, which a checkpoint cannot hold, so the default is used. Pass %s again.",
                path,
                " and ".join(f"{name}={objects[name]}" for name in lost),
                " and ".join(f"{name}=..." for name in lost),
            )


def _described(value: Any) -> str:
    """Return the name of a function or of an object's class, of each in a collection."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} ({_described(item)})" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_described, value))
    return value if isinstance(value, str) else getattr(value, "__qualname__", type(value).__name__)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
