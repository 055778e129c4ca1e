"""The worst mistakes on a sheet, with their true and predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.data.sources.base import Source
from finetune.interpret.heatmaps import Heatmaps
from finetune.interpret.plots.names import shown
from finetune.interpret.plots.sheet import Cell, Section, draw_sheet
from finetune.interpret.rows import JudgedSample, cell_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_mistakes(
    rows: Sequence[JudgedSample],
    source: Source,
    wrong: int,
    regression: bool,
    path: str | Path | None = None,
    theme: str | None = None,
    *,
    heatmaps: Heatmaps | None = None,
) -> Figure:
    """Draw samples with truth and answer above each.

    Args:
        rows: Samples to draw.
        source: The data.
        wrong: Number of all wrong answers.
        regression: Whether the samples are those of a regression, none of which is right or wrong.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `figures.drawing`.
        heatmaps: Evidence for the answers to the first rows, to lay over their images.
    """
    title = "The largest errors" if regression else f"The worst {len(rows)} of {wrong:,} mistakes"
    overlays = [] if heatmaps is None else [heatmaps.overlay(place) for place in range(min(len(heatmaps), len(rows)))]
    cells = [
        Cell(source, row.index, row.sample, _caption(row), picture)
        for row, picture in zip_longest(rows, overlays, fillvalue=None)
        if row is not None
    ]
    return draw_sheet([Section("", cells)], title if rows else "No mistakes", path, theme)


def _caption(row: JudgedSample) -> str:
    sure = row.probabilities.get(row.answer) if isinstance(row.answer, str) else None
    answer = shown(cell_of(row.answer))
    return f"true: {shown(cell_of(row.true))}\nanswer: {answer}{'' if sure is None else f' {sure:.2f}'}"
