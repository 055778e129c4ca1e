"""Small data, small models and callbacks that watch, for the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import callbacks
from finetune.training.optim.optimizers import state_by_name


@pytest.fixture
def blobs() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a function that makes X [n, features] and class indices [n] that can be told apart."""

    def make(
        n: int = 24, classes: int = 3, features: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(n) % classes
        centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2
        return centres[y] + torch.randn(n, features, generator=generator, dtype=dtype), y

    return make


@pytest.fixture
def net() -> Callable[..., nn.Sequential]:
    """Return a function that makes a model with batch norm and dropout, the same for the same seed."""

    def make(outputs: int = 3, features: int = 4, dropout: float = 0.3, seed: int = 0) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Linear(features, 8),
                nn.BatchNorm1d(8),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(8, 6),
                nn.ReLU(),
                nn.Linear(6, outputs),
            )

    return make


class Watch(callbacks.Callback):
    """Note each hook in order, each update's rates, and at the end the moments by parameter name."""

    HOOKS = tuple(name for name in vars(callbacks.Callback) if name.startswith("on_"))

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


@pytest.fixture
def watch() -> type[Watch]:
    return Watch


@pytest.fixture
def state_of() -> Callable[[nn.Module], dict[str, Tensor]]:
    """Return a function that copies a model's parameters and buffers."""
    return lambda model: {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def timeless() -> Callable[[Any], list[dict[str, Any]]]:
    """Return a function that gives a history's rows without what a clock put there."""
    clocks = ("seconds", "samples_per_second")
    return lambda history: [{key: value for key, value in row.items() if key not in clocks} for row in history]
