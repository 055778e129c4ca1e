"""The learning-rate range test: train a little at rates that rise, see where the loss falls, leave no trace.

The factor on the rates of all groups rises exponentially, so that the ratios between the groups are kept (Smith,
arXiv 1506.01186, with the rate on a logarithmic scale).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from finetune.data.loading.batches import Batches
from finetune.data.randomness import preserved
from finetune.errors import ArgumentError, NonFiniteError
from finetune.model.freezing import modes_restored, train_mode
from finetune.training.loop import update, windows
from finetune.training.optim.rates import Rate, scaled
from finetune.training.run import Run, restore, snapshot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The range of the fastest group's rate.
_LOWEST, _HIGHEST = 1e-7, 10.0

# The loss is averaged over this share of the test to either side before its slope is taken.
_SMOOTHED = 0.05


@dataclass(frozen=True)
class RateSuggestion:
    """What a range test found.

    Attributes:
        lr: the rates at which the loss fell fastest, in the form of those the test was given; for `fit(lr=...)`.
        rates: of the fastest group, at each update.
        losses: of each update's batches.
        suggested: the one of `rates` that `lr` belongs to.
    """

    lr: Rate
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggested: float

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the loss by rate, and the rate suggested.

        Args:
            path: where to write the picture as well; the format follows the suffix.

        Returns:
            The matplotlib figure.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="lightgrey", label="loss")
        axes.plot(self.rates, _smoothed(np.array(self.losses)), label="smoothed")
        axes.axvline(self.suggested, linestyle="--", color="black", label=f"{self.suggested:.1e}")
        axes.set(xscale="log", xlabel="learning rate of the fastest group", ylabel="loss")
        axes.legend()
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def rising(progress: float) -> float:
    """Return the factor on a rate of `_HIGHEST` at this progress of the test."""
    return float((_LOWEST / _HIGHEST) ** (1 - progress))


def range_test(run: Run, lr: Rate, steps: int) -> RateSuggestion:
    """Train for so many updates at rising rates, and suggest the rates at which the loss fell fastest.

    Model, gradients, modes and random state are as before at the end, whatever happens.

    Args:
        run: of one phase with the schedule `rising`.
        lr: the phase's own, of which the ratios between the groups count.

    Raises:
        ArgumentError: the loss fell at no rate.
    """
    run.steps_per_epoch = steps
    rates: list[float] = []
    losses: list[float] = []
    with _untouched(run.model), modes_restored(run.model), preserved():
        run.begin_phase()
        own = max(group["initial_lr"] for group in run.optimizer.param_groups)
        for group in run.optimizer.param_groups:
            group["initial_lr"] *= _HIGHEST / own
        train_mode(run.model)
        for window in islice(windows(_endless(run.train), run.accumulation), steps):
            run.meter.reset()
            try:
                update(run, window)
            except NonFiniteError:
                break
            rates.append(max(group["lr"] for group in run.optimizer.param_groups))
            losses.append(run.meter.compute()["loss"])
            if losses[-1] > min(losses) + 2 * abs(losses[0]):
                break
    suggested = _steepest(rates, losses)
    return RateSuggestion(scaled(lr, suggested / own), tuple(rates), tuple(losses), suggested)


def _steepest(rates: list[float], losses: list[float]) -> float:
    """Return the rate of the steepest fall of the smoothed loss over the logarithm of the rate."""
    if len(rates) > 2:
        slopes = np.gradient(_smoothed(np.array(losses)), np.log(rates))
        steepest = int(slopes.argmin())
        if slopes[steepest] < 0:
            return rates[steepest]
    raise ArgumentError(
        f"The loss fell at no rate from {_LOWEST} to {_HIGHEST} in {len(rates)} updates. More steps or a larger "
        f"batch_size make it less noisy; that nothing is learned at any rate may also lie in the data or the loss."
    )


def _smoothed(values: np.ndarray) -> np.ndarray:
    window = np.ones(2 * max(1, round(_SMOOTHED * len(values))) + 1)
    if len(window) > len(values):
        return values
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _endless(batches: Batches) -> Iterator[Any]:
    for epoch in count():
        empty = True
        for batch in batches.epoch(epoch):
            empty = False
            yield batch
        if empty:
            return


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put parameters, buffers and gradients back to what they were."""
    saved, gradients = snapshot(model), [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        restore(model, saved)
        for parameter, gradient in gradients:
            parameter.grad = gradient
