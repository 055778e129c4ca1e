"""L2-SP regularization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from finetune.distributed.divided import local, placed
from finetune.errors import number
from finetune.training.callbacks.base import Callback
from finetune.training.optim.optimizers import decayed, without_decay
from finetune.training.run import Run


class L2SP(Callback):
    """Decay the pretrained weights toward their starting point instead of zero (L2-SP, arXiv 1802.01483).

    Replaces weight decay and is decoupled from the gradients, as in AdamW: after each update
    `w -= lr * strength * (w - start)`, with the learning rate of the weight's group. The head is new, so its weights
    decay toward zero. Its biases and norm weights do not decay.

    Args:
        strength: Strength of the decay, 0 or above.

    Raises:
        ArgumentError: If `strength` is negative.

    Example:
        >>> from finetune import FineTuner
        >>> tuner, data = FineTuner(torch.nn.Linear(4, 2), device="cpu"), (torch.randn(8, 4), torch.arange(8) % 2)
        >>> history = tuner.fit(data, callbacks=[L2SP(strength=0.1)])
    """

    _state_form: ClassVar = {"start": {...: Tensor}}

    def __init__(self, strength: float = 0.1) -> None:
        self.strength = number("strength", strength, at_least=0)
        self._start: dict[str, Tensor] = {}
        self._groups: list[tuple[dict[str, Any], list[Tensor], list[Tensor], list[Tensor]]] = []

    def on_fit_begin(self, run: Run) -> None:
        if not self._start:  # a resumed run has restored its starting point
            below = {name: p for name, p in run.model.named_parameters() if not _in_head(run, name)}
            self._start = {name: parameter.detach().clone() for name, parameter in below.items()}

    def on_phase_begin(self, run: Run) -> None:
        without_decay(run.optimizer)
        names = {id(parameter): name for name, parameter in run.model.named_parameters()}
        decays = decayed(run.model)
        self._groups = []
        for group in run.optimizer.param_groups:
            by_name = {names[id(parameter)]: parameter for parameter in group["params"]}
            pulled = {name: parameter for name, parameter in by_name.items() if name in self._start}
            starts = [local(placed(self._start[name], parameter)) for name, parameter in pulled.items()]
            shrunk = [parameter for name, parameter in by_name.items() if name not in pulled and name in decays]
            self._groups.append((group, [*map(local, pulled.values())], starts, [*map(local, shrunk)]))

    @torch.no_grad()
    def on_step_end(self, run: Run) -> None:
        for group, pulled, starts, shrunk in self._groups:
            share = group["lr"] * self.strength
            if pulled:
                torch._foreach_lerp_(pulled, starts, share)
            if shrunk:
                torch._foreach_mul_(shrunk, 1 - share)

    def on_fit_end(self, run: Run) -> None:
        self._start, self._groups = {}, []

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start = dict(state.get("start", {}))


def _in_head(run: Run, name: str) -> bool:
    return any(f"{name}.".startswith(f"{head}.") for head in run.heads)
