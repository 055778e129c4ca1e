"""Callbacks that record a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from finetune.callbacks import Callback
from finetune.training.optim.optimizers import state_by_name


class Watch(Callback):
    """Record the hooks in order, the learning rates of each update, and at the end the optimizer state by parameter.

    Args:
        each_step: Function of the run whose result is recorded in `seen` after each update.
    """

    HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))

    def __init__(self, each_step: Callable[[Any], Any] | None = None) -> None:
        self.each_step = each_step
        self.hooks: list[str] = []
        self.rates: list[dict[str, float]] = []
        self.seen: list[Any] = []
        self.moments: dict[str, dict[str, Any]] = {}
        self.run: Any = None

    def __getattribute__(self, name: str) -> Any:
        if name in Watch.HOOKS:
            return lambda run: self.note(name, run)
        return super().__getattribute__(name)

    def note(self, hook: str, run: Any) -> None:
        self.hooks.append(hook)
        self.run = run
        if hook == "on_step_end":
            self.rates.append(run.rates())
            if self.each_step is not None:
                self.seen.append(self.each_step(run))
        if hook == "on_phase_end":
            self.moments = {
                name: {key: _copied(value) for key, value in state.items()}
                for name, state in state_by_name(run.optimizer, run.model).items()
            }


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
