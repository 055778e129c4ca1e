"""A sheet of samples as images or texts, with a caption above each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from PIL import Image

from finetune.data.sources.base import Source
from finetune.display import figures
from finetune.errors import DataError, printable
from finetune.interpret.pictures import picture_of, text_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_SIDE = 256  # pixels of an image, at most
_LINE, _LINES = 28, 8  # characters and lines of a text
_HEADING = 0.32  # inches
_LETTER = 0.1  # inches of a letter of the title


@dataclass(frozen=True)
class Cell:
    """A sample on a sheet.

    Attributes:
        source: The data.
        index: Number of the sample in it.
        name: Name that stands in the place of a sample that is neither image nor text.
        caption: Lines above the sample, as matplotlib takes them.
        picture: Image to show in place of the sample's own, or None.
    """

    source: Source
    index: int
    name: str
    caption: str
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Section:
    """Samples under one heading.

    Attributes:
        heading: Line above the samples, or an empty text for none.
        cells: The samples.
    """

    heading: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class _Row:
    heading: str
    contents: Sequence[tuple[Image.Image | str, str]]

    @property
    def inches(self) -> float:
        """Height in inches."""
        if self.heading:
            return _HEADING
        lines = max(caption.count("\n") + 1 for _, caption in self.contents)
        return 0.2 + 0.2 * lines + max(_height(content) for content, _ in self.contents)


def draw_sheet(
    sections: Sequence[Section], title: str, path: str | Path | None = None, theme: str | None = None
) -> Figure:
    """Draw samples as images or texts, others by their names, section by section.

    Args:
        sections: Samples to draw.
        title: Title of the sheet.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `figures.drawing`.
    """
    rows = [row for section in sections for row in _rows(section)]
    columns = min(_COLUMNS, max([1, *(len(row.contents) for row in rows)]))
    heights = [row.inches for row in rows] or [0.6]
    width = 2.6 * columns + 0.4
    lines = wrap(title, int(width / _LETTER))
    with figures.drawing(width, sum(heights) + 0.3 + 0.2 * len(lines), path, theme) as (figure, look):
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
        for place, row in enumerate(rows):
            if row.heading:
                axes = figure.add_subplot(grid[place, :])
                axes.text(0, 0, figures.plain(row.heading), va="bottom", color=look.text, fontweight="bold", wrap=True)
                axes.set_axis_off()
            for column in range(0 if row.heading else columns):  # empty ones keep the width of the others
                axes = figure.add_subplot(grid[place, column])
                axes.set_axis_off()
                if column < len(row.contents):
                    _draw(axes, *row.contents[column])
        figure.suptitle(figures.plain("\n".join(lines)))
    return figure


def _rows(section: Section) -> Iterator[_Row]:
    if section.heading:
        yield _Row(section.heading, ())
    contents = [(_content(cell), cell.caption) for cell in section.cells]
    for start in range(0, len(contents), _COLUMNS):
        yield _Row("", contents[start : start + _COLUMNS])


def _draw(axes: Axes, content: Image.Image | str, caption: str) -> None:
    if isinstance(content, str):
        axes.text(0.02, 0.95, figures.plain(content), transform=axes.transAxes, va="top", fontsize=9)
    else:
        axes.imshow(content)
    axes.set_title(caption, fontsize=8.5, loc="left", fontweight="normal")


def _content(cell: Cell) -> Image.Image | str:
    """Return a sample as an image, or as lines of text. One that cannot be read is shown by its name."""
    if cell.picture is not None:
        return cell.picture
    try:
        picture = picture_of(cell.source, cell.index)
        text = None if picture is not None else text_of(cell.source, cell.index)
    except DataError:
        picture = text = None
    if picture is not None:
        picture.thumbnail((_SIDE, _SIDE))
        return picture
    lines = wrap(printable(cell.name if text is None else text), _LINE)
    return "\n".join([*lines[: _LINES - 1], "..."] if len(lines) > _LINES else lines)


def _height(content: Image.Image | str) -> float:
    """Return the height of a content in inches."""
    if isinstance(content, str):
        return 0.17 * (content.count("\n") + 1)
    return min(2.4, 2.4 * content.height / content.width)
