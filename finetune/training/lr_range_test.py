"""The learning-rate range test (Smith, arXiv 1506.01186, with the rate on a logarithmic scale).

The model trains for a few updates while the rates of all groups rise exponentially by the same factor, which keeps the
ratios between groups. Afterwards the model is restored.
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
from finetune.data.randomness import preserved_between_draws
from finetune.display import figures
from finetune.display.progress.waits import announced
from finetune.errors import ArgumentError, NonFiniteError
from finetune.model.freezing import modes_restored, restore, snapshot, train_mode
from finetune.training.loop import update, windows
from finetune.training.optim.rates import Rate, scaled
from finetune.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Range of the rate of the fastest group.
_LOWEST, _HIGHEST = 1e-7, 10.0

# Half the width of the moving average over the losses, as a fraction of the test.
_SMOOTHING = 0.05


@dataclass(frozen=True)
class RateSuggestion:
    """The result of a learning-rate range test.

    Attributes:
        lr: Suggested learning rates, at which the loss fell fastest, in the same form as the test's `lr`. Pass them
            to `fit(lr=...)`.
        rates: Learning rate of the fastest group at each update.
        losses: Training loss at each update.
        suggested: Suggested rate of the fastest group, one of `rates`.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> tuner = FineTuner(nn.Linear(1, 1), device="cpu", loss="mse")
        >>> X = torch.randn(32, 1)
        >>> suggestion = tuner.find_lr((X, 3 * X), lr=1e-3)
        >>> history = tuner.fit((X, 3 * X), lr=suggestion.lr)
    """

    lr: Rate
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggested: float

    def plot(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot the loss by learning rate, with the suggested rate.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Example:
            >>> suggestion = RateSuggestion(1e-3, rates=(1e-4, 1e-3, 1e-2), losses=(2.0, 1.0, 0.9), suggested=1e-3)
            >>> figure = suggestion.plot("rates.png")
        """
        smoothed = _smoothed(np.array(self.losses))
        with figures.drawing(6.4, 3.8, path, theme) as (figure, look):
            axes = figure.subplots()
            axes.plot(self.rates, self.losses, color=look.faint, alpha=0.4, linewidth=1.2, label="loss of an update")
            axes.plot(self.rates, smoothed, color=look.colors[0], label="smoothed")
            axes.axvline(self.suggested, color=look.colors[1], linestyle="--", linewidth=1.4, zorder=1.5)
            steepest = float(np.interp(self.suggested, self.rates, smoothed))
            label = f"suggested: {self.suggested:.2g}"
            axes.plot([self.suggested], [steepest], "o", color=look.colors[1], markersize=7, label=label)
            axes.set(xscale="log", xlabel="learning rate of the fastest group", ylabel="loss")
            axes.set_ylim(figures.limits(self.losses))
            figure.legend(loc="outside upper center", ncols=3)
        return figure


def rising(progress: float) -> float:
    """Return the factor on the highest rate at a progress in [0, 1], the schedule of the test."""
    return float((_LOWEST / _HIGHEST) ** (1 - progress))


def lr_range_test(run: Run, lr: Rate, steps: int) -> RateSuggestion:
    """Train at rising learning rates, and suggest those at which the loss fell fastest.

    Model, gradients, modes and random state are restored on exit, also after an error.

    Args:
        run: Run of a single phase with the schedule `rising`.
        lr: Learning rates of that phase, of which the test keeps the ratios between groups.
        steps: Number of optimizer updates.

    Raises:
        ArgumentError: If the loss did not fall at any rate.
    """
    run.steps_per_epoch = steps
    rates: list[float] = []
    losses: list[float] = []
    with _restored(run.model), modes_restored(run.model), preserved_between_draws(), run.put_together():
        run.begin_phase()
        own = max(group["initial_lr"] for group in run.optimizer.param_groups)
        for group in run.optimizer.param_groups:
            group["initial_lr"] *= _HIGHEST / own
        train_mode(run.model)
        updates = islice(windows(_endless(run.train), run.accumulation), steps)
        for window in announced(updates, "Trying learning rates", steps):
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
    """Return the rate at which the smoothed loss falls most steeply on a logarithmic scale."""
    if len(rates) > 2:
        slopes = np.gradient(_smoothed(np.array(losses)), np.log(rates))
        steepest = int(slopes.argmin())
        if slopes[steepest] < 0:
            return rates[steepest]
    raise ArgumentError(
        f"The loss fell at no rate from {_LOWEST} to {_HIGHEST} in {len(rates)} updates. Increase steps or batch_size "
        f"for a less noisy loss. If it still does not fall, check the data and the loss function."
    )


def _smoothed(values: np.ndarray) -> np.ndarray:
    window = np.ones(2 * max(1, round(_SMOOTHING * len(values))) + 1)
    if len(window) > len(values):
        return values
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _endless(batches: Batches) -> Iterator[Any]:
    for epoch in count():
        yield from batches.epoch(epoch)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore parameters, buffers and gradients on exit."""
    saved, gradients = snapshot(model), [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        restore(model, saved)
        for parameter, gradient in gradients:
            parameter.grad = gradient
