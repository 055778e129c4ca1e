"""The plots of probabilities: a reliability diagram, and histograms of scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.display import figures
from finetune.interpret.plots.names import shown
from finetune.interpret.rows import Histogram, ReliabilityBin, cell_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_reliability(
    bins: Sequence[ReliabilityBin],
    error: float,
    confidence: str,
    path: str | Path | None = None,
    theme: str | None = None,
) -> Figure:
    """Draw accuracy by confidence with the diagonal of calibrated probabilities, and the counts below.

    Args:
        bins: Rows of `reliability`.
        error: Expected calibration error.
        confidence: Name of the probabilities.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `figures.drawing`.
    """
    with figures.drawing(5, 5.5, path, theme) as (figure, look):
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        filled = [each for each in bins if each.count]
        lows, widths = [each.low for each in bins], [each.high - each.low for each in bins]
        above.bar(
            [each.low for each in filled],
            [each.accuracy for each in filled],
            width=[each.high - each.low for each in filled],
            align="edge",
            alpha=0.35,
            label="accuracy",
        )
        above.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=look.faint, label="calibrated")
        above.plot(
            [each.confidence for each in filled],
            [each.accuracy for each in filled],
            marker="o",
            markersize=4,
            label="at mean confidence",
        )
        above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", title=f"Calibration error {cell_of(error)}")
        above.legend(loc="upper left")
        below.bar(lows, [each.count for each in bins], width=widths, align="edge", alpha=0.6)
        figures.count_on(below.yaxis)
        below.set(xlabel=shown(confidence, 60), ylabel="count")
    return figure


def draw_scores(
    histogram: Histogram,
    confidence: str,
    threshold: float | None = None,
    path: str | Path | None = None,
    theme: str | None = None,
) -> Figure:
    """Draw one histogram per group above each other, each scaled to its own samples.

    Args:
        histogram: Edges and counts.
        confidence: Name of the scores.
        threshold: Score above which the second class is answered, or None.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `figures.drawing`.
    """
    with figures.drawing(5, 1 + 1.7 * len(histogram.counts), path, theme) as (figure, look):
        edges = histogram.edges
        widths = [high - low for low, high in pairwise(edges)]
        rows = figure.subplots(len(histogram.counts), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, counts) in zip(rows, histogram.counts.items(), strict=True):
            axes.bar(edges[:-1], counts, width=widths, align="edge", alpha=0.7)
            figures.count_on(axes.yaxis)
            axes.set(xlim=(0, 1), ylabel="count", title=f"{shown(name, 40)} ({sum(counts):,})")
            axes.set_ylim(0, None if any(counts) else 1)
            if threshold is not None:
                axes.axvline(
                    threshold, linestyle="--", linewidth=1, color=look.faint, label=f"threshold {threshold:.2f}"
                )
                axes.legend()
        rows[-1].set_xlabel(shown(confidence, 60))
    return figure
