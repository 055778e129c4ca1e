"""`NotebookDisplay`: one output of a cell that is updated in place, with the lines, a table of epochs and the bars."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import import_module
from itertools import groupby
from typing import Any
from uuid import uuid4

from finetune.display import html
from finetune.display.progress.bar import Bar
from finetune.display.progress.display import Display
from finetune.display.progress.layout import Row, rows_of

_MAX_ROWS = 20  # of a table, the last ones

_PLAIN = "margin: 0; font-family: monospace; line-height: 1.3; white-space: pre-wrap"  # themes write <pre> as text

Publish = Callable[..., Any]


class NotebookDisplay(Display):
    """One block of HTML: the lines in their order, those with the same values as a table, and the bars below.

    It appears with the first line, and is redrawn at the pace of the bars, however many lines there are. A drawing
    replaces the one before, also where no browser shows it, so the file of a notebook holds only the last one. Readers
    of plain text get the lines.

    Args:
        publish: Function with the arguments of `IPython.display.display`.
    """

    interval = 0.5

    def __init__(self, publish: Publish) -> None:
        super().__init__()
        self._publish, self._id = publish, uuid4().hex
        self._lines: list[tuple[str, Mapping[str, str] | None]] = []
        self._rows: list[Row] = []
        self._page: str | None = None
        self._publishing = threading.Lock()

    def show(self, line: str, cells: Mapping[str, str] | None = None) -> None:
        self._lines.append((line, cells))
        if self._page is None:
            self._update()

    def draw(self, bars: Sequence[Bar], now: float) -> None:
        self._rows = rows_of(bars, now)
        self._update()

    def end(self) -> None:
        self._rows = []
        self._update()

    def _update(self) -> None:
        with self._publishing:
            if self._lines or self._rows or self._page is not None:
                self._publish_changes()

    def _publish_changes(self) -> None:
        page = "".join([*blocks(self._lines), *map(bar_block, self._rows)])
        if page != self._page:
            text = "\n".join(line for line, _ in self._lines)
            data = {"text/html": f"<div>{page}</div>", "text/plain": text}
            self._publish(data, raw=True, display_id=self._id, update=self._page is not None)
            self._page = page


def blocks(lines: Iterable[tuple[str, Mapping[str, str] | None]]) -> Iterable[str]:
    """Yield lines as paragraphs and tables, in their order.

    Example:
        >>> [block[:6] for block in blocks([("Phase 1", None), ("epoch 1", {"epoch": "1"}), ("Phase 2", None)])]
        ['<pre s', '<table', '<pre s']
    """
    for names, group in groupby(lines, key=lambda item: None if item[1] is None else tuple(item[1])):
        items = list(group)
        if names is None:
            text = escape("\n".join(line for line, _ in items))
            yield f'<pre style="{_PLAIN}">{text}</pre>'
        else:
            rows = [list(cells.values()) for _, cells in items if cells is not None]
            earlier = len(rows) - _MAX_ROWS
            more = html.paragraph(f"... {earlier:,} earlier rows") if earlier > 0 else ""
            yield more + html.table(names, rows[-_MAX_ROWS:], text=0)


def bar_block(row: Row) -> str:
    """Return a row of the display as HTML."""
    bar = ""
    if row.fraction is not None:
        name = escape(row.label, quote=True)
        bar = f'<progress value="{row.fraction:.4f}" max="1" aria-label="{name}" style="width: 15em"></progress> '
    text = "  ".join([row.label, *filter(None, [row.right]), *row.values])
    return f'<div style="white-space: pre-wrap; font-variant-numeric: tabular-nums">{bar}{escape(text)}</div>'


def notebook() -> Publish | None:
    """Return the function that displays in the notebook this process is the kernel of, or None elsewhere.

    IPython is not imported. A cell that captures its output gets lines, as every update would be captured, too.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    if type(shell.display_pub).__name__ == "CapturingDisplayPublisher":
        return None
    publish: Publish = import_module("IPython.display").display
    return publish
