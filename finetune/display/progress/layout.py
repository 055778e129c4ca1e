"""The rows of a live display, and their columns at a given width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from finetune.display.progress.bar import Bar, visible

_GAP = 2  # columns between two parts of a row
_RIGHT = 20  # columns kept for the count and the time, so that the bar does not change its width with them
_NARROWEST, _WIDEST = 8, 30  # columns of a bar


class Row(NamedTuple):
    """A row of a live display.

    Attributes:
        label: Words on the left.
        fraction: Part of the work that is done, in [0, 1]; None for a row without a bar.
        right: Count and time.
        values: Values that stand where others have their bar.
    """

    label: str
    fraction: float | None
    right: str
    values: tuple[str, ...] = ()


def rows_of(bars: Sequence[Bar], now: float) -> list[Row]:
    """Return the rows to draw: the outermost work, and below it the innermost, or else the current part of the first.

    Example:
        >>> fit = Bar("epoch 2/5", 40, 10, doing="Training", values=["loss 0.5"], end=9.0, patience=0.0, begun=0.0)
        >>> for row in rows_of([fit], now=5.0):
        ...     print(tuple(row))
        ('epoch 2/5', 0.25, '10/40  0:04 left', ())
        ('Training', None, '', ('loss 0.5',))
    """
    shown = visible(bars, now)
    rows = [_row(bar, now) for bar in shown]
    if len(shown) == 1 and shown[0].doing:
        rows.append(Row(shown[0].doing, None, "", tuple(shown[0].values)))
    return rows


def columns(rows: Sequence[Row], width: int, ellipsis: str = "…") -> list[tuple[str, int, str]]:
    """Return the label, the columns of the bar, and the right part of each row, to fit in a width.

    Where there is little room, the bars are left out, then the last values, then the ends of the labels.

    Args:
        rows: Rows to draw.
        width: Columns of the display.
        ellipsis: Sign in place of the end of a label.

    Example:
        >>> columns([Row("Reading", 0.5, "20/40"), Row("Saving", None, "0:02")], 60)
        [('Reading', 29, '20/40'), ('Saving ', 29, '0:02')]
        >>> columns([Row("Reading the images", 0.5, "20/40")], 20)
        [('Reading the…', 0, '20/40')]
    """
    from rich.cells import cell_len, set_cell_size  # a character may take two columns

    label = max((cell_len(row.label) for row in rows), default=0)
    right = max((cell_len(row.right) for row in rows), default=0)
    bar = min(_WIDEST, width - label - max(right, _RIGHT) - 2 * _GAP)
    if bar < _NARROWEST:
        bar, label = 0, max(1, min(label, width - right - _GAP))
    found = []
    for row in rows:
        name = row.label
        if cell_len(name) > label:
            name = set_cell_size(name, label - cell_len(ellipsis)).rstrip() + ellipsis
        room = width - (label if bar else cell_len(name)) - _GAP
        found.append((set_cell_size(name, label) if bar else name, bar, _fitting(row.values, room) or row.right))
    return found


def drawn(fraction: float, width: int, *, ascii_only: bool = False) -> tuple[str, str]:
    """Return the done and the remaining part of a bar, which differ in form, not only in color.

    Example:
        >>> drawn(0.45, 10)
        ('━━━━╸', '─────')
        >>> drawn(0.45, 10, ascii_only=True)
        ('####', '------')
    """
    full, half = divmod(int(2 * width * min(max(fraction, 0.0), 1.0)), 2)
    done = "#" * full if ascii_only else "━" * full + "╸" * half
    return done, ("-" if ascii_only else "─") * (width - len(done))


def _row(bar: Bar, now: float) -> Row:
    fraction = bar.done / bar.total if bar.total else None
    return Row(bar.label, fraction, "  ".join(filter(None, [bar.count(), bar.time(now)])))


def _fitting(values: Sequence[str], width: int) -> str:
    """Return as many of the first values as fit in a line."""
    from rich.cells import cell_len

    shown = ""
    for value in values:
        longer = f"{shown}  {value}" if shown else value
        if cell_len(longer) > width:
            break
        shown = longer
    return shown
