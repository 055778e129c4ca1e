"""`TerminalDisplay`: bars at the bottom of a terminal, below the lines."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from finetune.display.lines import print_line
from finetune.display.progress.bar import Bar
from finetune.display.progress.display import Display
from finetune.display.progress.layout import Row, columns, drawn, rows_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class TerminalDisplay(Display):
    """One or two rows that are redrawn in place, below everything that is printed meanwhile.

    They are drawn on standard error, so that standard output holds only results.

    Args:
        console: Console to draw on; None for standard error, with the lines on standard output.
    """

    interval = 0.25

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console
        self._print: Callable[[str], Any] = print_line
        if console is not None:
            self._print = partial(console.print, highlight=False, markup=False, emoji=False)
        self._rows: list[Row] = []
        self._size = 0
        self._live = ExitStack()
        self._refresh: Callable[[], None] | None = None

    def show(self, line: str, cells: Mapping[str, str] | None = None) -> None:
        self._print(line)

    def draw(self, bars: Sequence[Bar], now: float) -> None:
        rows = rows_of(bars, now)
        if rows and self._refresh is None:
            self._refresh = self._started()
        width = self._console.width if self._console is not None else 0
        if self._refresh is not None and (rows, width) != (self._rows, self._size):
            self._rows, self._size = rows, width
            self._refresh()

    def end(self) -> None:
        self._rows, self._refresh = [], None
        self._live.close()

    def _started(self) -> Callable[[], None]:
        """Begin to draw, and return a function that draws anew."""
        from rich.console import Console
        from rich.live import Live

        if self._console is None:
            self._console = Console(stderr=True)
        live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            get_renderable=self._rendered,
            redirect_stdout=_is_terminal(sys.stdout),  # else the lines go to a file
        )
        before = sys.stdout, sys.stderr
        self._live.enter_context(live)
        self._live.enter_context(_handlers_moved(dict(zip(before, (sys.stdout, sys.stderr), strict=True))))
        return live.refresh

    def _rendered(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        assert self._console is not None
        ascii_only = self._console.options.ascii_only
        lines = []
        for row, (label, width, right) in zip(self._rows, self._columns(ascii_only), strict=True):
            line = Text(label, no_wrap=True, overflow="crop")
            if width and row.fraction is not None:
                done, remaining = drawn(row.fraction, width, ascii_only=ascii_only)
                line.append("  ").append(done, "magenta").append(remaining, "dim")
            elif width and not row.values:
                line.append(" " * (2 + width))
            lines.append(line.append(f"  {right}" if right else ""))
        return Group(*lines)

    def _columns(self, ascii_only: bool) -> list[tuple[str, int, str]]:
        assert self._console is not None
        return columns(self._rows, self._console.width - 1, "..." if ascii_only else "…")


def can_redraw(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal that can move its cursor."""
    return _is_terminal(stream) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


@contextmanager
def _handlers_moved(streams: Mapping[TextIO, TextIO]) -> Iterator[None]:
    """Let the handlers of logging write above the bars, where they hold a stream that was replaced."""
    handlers = [*logging.getLogger().handlers, *logging.getLogger("finetune").handlers]
    moved = [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream in streams]
    before = [handler.setStream(streams[handler.stream]) for handler in moved]
    try:
        yield
    finally:
        for handler, stream in zip(moved, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
