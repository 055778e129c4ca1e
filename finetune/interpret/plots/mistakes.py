"""The worst mistakes on a sheet, with their true and predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
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
    cells = [_cell(row, source, place, heatmaps) for place, row in enumerate(rows)]
    return draw_sheet([Section("", cells)], title if rows else "No mistakes", path, theme)


def _cell(row: JudgedSample, source: Source, place: int, heatmaps: Heatmaps | None) -> Cell:
    caption, overlay = _caption(row), None
    if heatmaps is not None and place < len(heatmaps):
        caption += "\nevidence: nowhere" if heatmaps.is_empty(place) else ""
        overlay = heatmaps.overlay(place)
    return Cell(source, row.index, row.sample, caption, overlay)


def _caption(row: JudgedSample) -> str:
    sure = row.probabilities.get(row.answer) if isinstance(row.answer, str) else None
    answer = shown(cell_of(row.answer))
    return f"true: {shown(cell_of(row.true))}\nanswer: {answer}{'' if sure is None else f' {sure:.2f}'}"
