"""A sheet of samples with their true and predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from PIL import Image

from finetune.data.sources.base import Source
from finetune.display import figures
from finetune.errors import printable
from finetune.interpret.heatmaps import Heatmaps
from finetune.interpret.pictures import picture_of, text_of
from finetune.interpret.plots.names import shown
from finetune.interpret.rows import JudgedSample, cell_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_SIDE = 256  # pixels of an image, at most
_LINE, _LINES = 28, 8  # characters and lines of a text


def draw_sheet(
    rows: Sequence[JudgedSample],
    source: Source,
    wrong: int,
    regression: bool,
    path: str | Path | None = None,
    theme: str | None = None,
    *,
    heatmaps: Heatmaps | None = None,
) -> Figure:
    """Draw samples as images or texts, others by their names, with truth and answer above each.

    Args:
        rows: Samples to draw.
        source: The data.
        wrong: Number of all wrong answers.
        regression: Whether the samples are those of a regression, none of which is right or wrong.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `figures.drawing`.
        heatmaps: Evidence for the answers to the first rows, to lay over their images.
    """
    explained = 0 if heatmaps is None else len(heatmaps)
    contents: list[Image.Image | str] = [
        heatmaps.overlay(place) if heatmaps is not None and place < explained else _content(source, row)
        for place, row in enumerate(rows)
    ]
    columns = min(_COLUMNS, max(1, len(rows)))
    lines = [contents[start : start + columns] for start in range(0, len(contents), columns)] or [[""]]
    heights = [0.6 + max(map(_height, line)) for line in lines]
    with figures.drawing(2.6 * columns + 0.4, sum(heights) + 0.5, path, theme) as (figure, _):
        grid = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights).flatten().tolist()
        for axes in grid:
            axes.set_axis_off()
        for axes, content, row in zip(grid, contents, rows, strict=False):
            if isinstance(content, str):
                axes.text(0.02, 0.95, content.replace("$", r"\$"), transform=axes.transAxes, va="top", fontsize=9)
            else:
                axes.imshow(content)
            axes.set_title(_caption(row), fontsize=8.5, loc="left", fontweight="normal")
        title = "The largest errors" if regression else f"The worst {len(rows)} of {wrong:,} mistakes"
        figure.suptitle(title if rows else "No mistakes")
    return figure


def _caption(row: JudgedSample) -> str:
    sure = row.probabilities.get(row.answer) if isinstance(row.answer, str) else None
    answer = shown(cell_of(row.answer))
    return f"true: {shown(cell_of(row.true))}\nanswer: {answer}{'' if sure is None else f' {sure:.2f}'}"


def _content(source: Source, row: JudgedSample) -> Image.Image | str:
    """Return a sample as an image, or as lines of text."""
    picture = picture_of(source, row.index)
    if picture is not None:
        picture.thumbnail((_SIDE, _SIDE))
        return picture
    text = text_of(source, row.index)
    lines = wrap(printable(row.sample if text is None else text), _LINE)
    return "\n".join([*lines[: _LINES - 1], "..."] if len(lines) > _LINES else lines)


def _height(content: Image.Image | str) -> float:
    """Return the height of a content in inches."""
    if isinstance(content, str):
        return 0.17 * (content.count("\n") + 1)
    return min(2.4, 2.4 * content.height / content.width)
