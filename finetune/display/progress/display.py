"""`Display`: the place where one verb shows its progress and its lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from finetune.display.progress.bar import Bar
from finetune.display.progress.ticker import Ticker

T = TypeVar("T")


class Display:
    """Base class of displays, and the display that shows nothing.

    The work only notes how far it is. A thread draws it, a few times per second.

    Attributes:
        interval: Seconds between two drawings, at least.
    """

    interval = float("inf")

    def __init__(self) -> None:
        self._bars: list[Bar] = []
        self._ticker = Ticker(lambda: self.draw([*self._bars], time.monotonic()), self.interval)

    @contextmanager
    def under_way(self, bar: Bar) -> Iterator[Bar]:
        """Display a bar, within those that are under way, until the context exits."""
        self._bars.append(bar)
        if self.interval < float("inf"):
            self._ticker.start()
        try:
            yield bar
        finally:
            self._bars.remove(bar)

    def counted(self, items: Iterable[T], bar: Bar) -> Iterator[T]:
        """Yield the items, and count them on a bar."""
        with self.under_way(bar):
            for bar.done, item in enumerate(items):
                yield item

    def close(self) -> None:
        """End the display."""
        self._ticker.stop()
        self.end()

    def show(self, line: str, cells: Mapping[str, str] | None = None) -> None:
        """Show a finished line.

        Args:
            line: The line.
            cells: Its values by name, if it is one of many lines with the same values.
        """

    def draw(self, bars: Sequence[Bar], now: float) -> None:
        """Draw the work under way.

        Args:
            bars: Bars from the outermost to the innermost.
            now: Time in seconds of `time.monotonic`.
        """

    def end(self) -> None:
        """Remove the bars. The lines stay."""
