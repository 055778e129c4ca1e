"""Averages of the weights over the updates or the epochs of a phase.

The average stands beside the weights that train. From the end of each epoch's training to the beginning of the next
it stands in their place, so that what is evaluated, kept as the best and left at the end is the average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.errors import ArgumentError
from finetune.model.freezing import moving_statistics, trainable
from finetune.nested import num_samples_of
from finetune.training.callbacks.base import Callback
from finetune.training.run import Run


class _Average(Callback):
    """What both averages share: the tensors that take part, and the exchange with those of the model."""

    def __init__(self) -> None:
        self._own: dict[str, Tensor] = {}  # the model's, in place
        self._average: dict[str, Tensor] = {}
        self._set_aside: dict[str, Tensor] = {}  # the weights that train, while the average stands in their place
        self._count = 0

    def on_phase_begin(self, run: Run) -> None:
        self._own = _changing(run.model)
        if run.position.epoch == run.position.window == 0:
            self._average, self._set_aside, self._count = {}, {}, 0
        else:  # a resumed phase goes on with what it had
            self._average = {name: value.to(self._own[name].device) for name, value in self._average.items()}

    def on_epoch_begin(self, run: Run) -> None:
        _copy(self._set_aside, self._own)
        self._set_aside = {}

    def on_phase_end(self, run: Run) -> None:
        self._own, self._average, self._set_aside, self._count = {}, {}, {}, 0

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "set_aside": self._set_aside, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self._average, self._set_aside, self._count = state["average"], state["set_aside"], state["count"]

    def _exchange(self) -> None:
        """Put the average in the place of the weights."""
        self._set_aside = _copies(self._own)
        _copy(self._average, self._own)

    def _approach(self, share: float) -> None:
        """Move the average towards the present weights by a share of the way."""
        if not self._average:
            self._average = _copies(self._own)
        torch._foreach_lerp_([self._average[name] for name in self._own], list(self._own.values()), share)
        self._count += 1


class EMA(_Average):
    """Evaluate, keep and leave an exponential moving average of the weights (Polyak averaging).

    It takes part of the weights that train and of the batch statistics that move with them. Its memory grows with
    the number of updates, as `min(decay, (1 + n) / (10 + n))`, so that a short run is not held at its beginning.

    Args:
        decay: what part of the average an update leaves, in (0, 1).

    Raises:
        ArgumentError: a decay out of its range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ArgumentError(f"Expected decay to be between 0 and 1, as 0.999, but got {decay!r}.")
        super().__init__()
        self.decay = decay

    def on_phase_begin(self, run: Run) -> None:
        super().on_phase_begin(run)
        if not self._average:
            self._average = _copies(self._own)

    @torch.no_grad()
    def on_step_end(self, run: Run) -> None:
        self._approach(1 - min(self.decay, (1 + self._count) / (10 + self._count)))

    def on_evaluate_begin(self, run: Run) -> None:
        self._exchange()


class SWA(_Average):
    """Evaluate, keep and leave the mean of the weights after each of a phase's last epochs (arXiv 1803.05407).

    The batch statistics of the mean are computed anew in a pass over the training data. It goes with a rate that
    does not fall to zero, as `schedule="constant"`: else the last epochs' weights are all the same.

    Args:
        start: the share of a phase's epochs after which averaging begins, from 0 up to but not including 1.

    Raises:
        ArgumentError: a start out of its range.
    """

    def __init__(self, start: float = 0.75) -> None:
        if not 0 <= start < 1:
            raise ArgumentError(f"Expected start to be from 0 up to, but not including, 1, but got {start!r}.")
        super().__init__()
        self.start = start

    @torch.no_grad()
    def on_evaluate_begin(self, run: Run) -> None:
        if (run.position.epoch + 1) / run.phase.epochs <= self.start:
            return
        self._approach(1 / (self._count + 1))
        self._exchange()
        if self._count > 1 and run.moves_statistics:
            _renew_statistics(run)


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """Return by name what training changes and an average makes sense of: weights, and floating statistics."""
    moving = {id(buffer) for buffer in moving_statistics(model)}
    statistics = {n: b for n, b in model.named_buffers() if id(b) in moving and b.is_floating_point()}
    return {**{name: parameter.detach() for name, parameter in trainable(model).items()}, **statistics}


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    if source:
        torch._foreach_copy_([target[name] for name in source], [value.to(target[n]) for n, value in source.items()])


def _renew_statistics(run: Run) -> None:
    """Compute the batch statistics of the weights there are over the training data, each batch counting the same."""
    norms = [module for module in run.model.modules() if isinstance(module, _BatchNorm) and module.training]
    norms = [norm for norm in norms if norm.running_mean is not None]
    momenta: Sequence[float | None] = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    try:
        for batch in run.train.epoch(run.epoch):
            with run.precision.autocast(), run.train.serving(batch):
                if num_samples_of(batch) > 1:  # one sample has no statistics
                    run.tuner.training_step(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
