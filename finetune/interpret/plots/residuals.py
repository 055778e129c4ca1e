"""The plot of a regression: predicted by true values, and residuals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from finetune.display import figures
from finetune.interpret.plots.names import shown
from finetune.interpret.rows import OutputErrors, cell_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 6  # outputs
_FEW = 500  # samples drawn with full opacity


def draw_residuals(
    targets: Tensor,
    values: Tensor,
    errors: Sequence[OutputErrors],
    path: str | Path | None = None,
    theme: str | None = None,
) -> Figure:
    """Draw a row per output: predicted by true values on the left, the distribution of the residuals on the right.

    Args:
        targets: True values [N, K].
        values: Predicted values [N, K].
        errors: Errors of each output. Of more than six outputs, those of the lowest R2 are drawn.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `figures.drawing`.
    """
    weakest = sorted(range(len(errors)), key=lambda place: (errors[place].r2 == errors[place].r2, errors[place].r2))
    chosen = sorted(weakest[:_MOST])
    with figures.drawing(9, 0.6 + 3.4 * len(chosen), path, theme) as (figure, look):
        for (left, right), place in zip(figure.subplots(len(chosen), 2, squeeze=False), chosen, strict=True):
            true, predicted, found = targets[:, place].double(), values[:, place].double(), errors[place]
            low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
            alpha = 0.7 if len(true) <= _FEW else 0.25
            left.plot([low, high], [low, high], linestyle="--", linewidth=1, color=look.faint)
            left.plot(true, predicted, linestyle="", marker="o", markersize=3, alpha=alpha, markeredgewidth=0)
            name = shown(found.output, 40)
            measured = f"mae {cell_of(found.mae)}, R² {cell_of(found.r2)}"
            for axes in (left, right):
                axes.locator_params("x", nbins=6)
            left.set(xlabel="true", ylabel="predicted", title=f"{name}: {measured}" if len(errors) > 1 else measured)
            right.hist((true - predicted).numpy(), bins=30, alpha=0.7)
            right.axvline(0, linestyle="--", linewidth=1, color=look.faint)
            figures.count_on(right.yaxis)
            right.set(xlabel="residual: true minus predicted", ylabel="samples")
        if len(chosen) < len(errors):
            figure.suptitle(f"The {len(chosen)} weakest of {len(errors):,} outputs", fontsize=9)
    return figure
