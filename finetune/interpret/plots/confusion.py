"""The plot of a confusion matrix: whole up to 150 classes, and of more classes the most confused ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finetune.display import figures
from finetune.interpret.measures import confused_pairs
from finetune.interpret.plots.names import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 150  # classes in one plot
_PART = 40  # classes shown of more
_NUMBERED = 25  # classes with numbers in their cells
_OTHERS = "others"


def draw_confusion(
    confusion: Tensor, labels: tuple[str, ...], path: str | Path | None = None, theme: str | None = None
) -> Figure:
    """Draw a confusion matrix, each row as shares of a true class. A row without samples is gray.

    Args:
        confusion: Counts [C, C].
        labels: Name of each class.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `figures.drawing`.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    chosen = list(range(len(labels))) if len(labels) <= _MOST else most_confused_classes(confusion, labels, _PART)
    counts = confusion[chosen][:, chosen]
    rows = [shown(labels[label]) for label in chosen]
    columns = rows
    if len(chosen) < len(labels):
        counts = torch.cat([counts, confusion[chosen].sum(1, keepdim=True) - counts.sum(1, keepdim=True)], dim=1)
        columns = [*rows, _OTHERS]
    shares = counts / counts.sum(1, keepdim=True)  # NaN for a class without samples

    cell, size = (0.42, 9.0) if len(rows) <= _NUMBERED else (0.24, 7.0) if len(rows) <= 60 else (0.115, 5.5)
    side, beside = max(2.6, cell * len(rows)), 0.0085 * size * max(map(len, columns))
    upright = beside > 0.9 * side / len(columns)  # the names are wider than the cells
    width, height = side + beside + 1.7, side + (beside if upright else 0.2) + 0.9
    with figures.drawing(width, height, path, theme) as (figure, look):
        axes = figure.subplots()
        # The square root shows a share of 1 %, and the color of a class without samples differs from that of any share.
        ramp = LinearSegmentedColormap.from_list("shares", [look.background, look.colors[0]])
        colors = ramp.with_extremes(bad=look.grid)
        image = axes.imshow(
            shares.numpy(), cmap=colors, norm=PowerNorm(0.5, 0, 1), aspect="equal", interpolation="nearest"
        )
        axes.set_xticks(range(len(columns)), columns, rotation=90 if upright else 0, fontsize=size)
        axes.set_yticks(range(len(rows)), rows, fontsize=size)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.set(xlabel="predicted", ylabel="true")
        title = f"Confusion of {len(labels):,} classes"
        if len(rows) < len(labels):
            axes.axvline(len(rows) - 0.5, color=look.faint, linewidth=1)
            title = f"The {len(rows)} most confused of {len(labels):,} classes"
        axes.set_title(title)
        bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 5 / side), label="share of the true class")
        bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1.0], labels=["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
        bar.ax.grid(False)
        if len(rows) <= _NUMBERED:
            _number(axes, look, counts, shares)
    return figure


def most_confused_classes(confusion: Tensor, labels: tuple[str, ...], count: int) -> list[int]:
    """Return the classes of the most confused pairs, the two of a pair side by side, then the first others.

    Example:
        >>> most_confused_classes(torch.tensor([[3, 0, 0], [0, 1, 0], [2, 0, 1]]), ("a", "b", "c"), 2)
        [2, 0]
    """
    places = tuple(map(str, range(len(labels))))  # names may repeat
    chosen: dict[int, None] = {}
    for pair in confused_pairs(confusion, places, len(labels) ** 2):
        for place in (int(pair.true), int(pair.predicted)):
            if len(chosen) < count:
                chosen[place] = None
    for place in range(len(labels)):
        if len(chosen) < count:
            chosen[place] = None
    return list(chosen)


def _number(axes: Axes, look: figures.Look, counts: Tensor, shares: Tensor) -> None:
    """Write the counts into the cells."""
    for row, line in enumerate(counts.tolist()):
        for column, count in enumerate(line):
            if count:
                color = look.background if shares[row, column] > 0.4 else look.text
                size = 9 if count < 10_000 else 7
                axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=size)
