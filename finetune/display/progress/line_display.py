"""`LineDisplay`: rare lines, for a file, a pipe or a terminal that cannot redraw."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from finetune.display.lines import log, print_line
from finetune.display.progress.bar import Bar, visible
from finetune.display.progress.display import Display

_FIRST, _RAREST = 30.0, 600.0  # seconds without a line, of which there are twice as many after each sign of life


class LineDisplay(Display):
    """Lines, with a sign of life where there would be none for long.

    A pass that takes more than a second is announced with one line. Later signs follow after 30 seconds without a
    line, then after one minute, two, and so on up to ten.

    Args:
        logger: Logger of the signs of life.
    """

    interval = 1.0

    def __init__(self, logger: logging.Logger = log) -> None:
        super().__init__()
        self._logger = logger
        self._announced: Bar | None = None
        self._last, self._pause = time.monotonic(), _FIRST

    def show(self, line: str, cells: Mapping[str, str] | None = None) -> None:
        print_line(line)
        self._last, self._pause = time.monotonic(), _FIRST

    def draw(self, bars: Sequence[Bar], now: float) -> None:
        shown = visible(bars, now)
        if not shown:
            return
        begins = shown[0].patience > 0 and shown[0] is not self._announced
        if not begins and now < self._last + self._pause:
            return
        pause = _FIRST if begins else min(2 * self._pause, _RAREST)
        self._logger.info("; ".join(sentence(bar, now) for bar in shown))
        self._announced, self._last, self._pause = shown[0], now, pause


def sentence(bar: Bar, now: float) -> str:
    """Return a line about work under way.

    Example:
        >>> sentence(Bar("Reading", total=40, done=10, begun=0.0), now=5.0)
        'Reading: 10 of 40, 0:15 left'
        >>> sentence(Bar("Saving"), now=5.0)
        'Saving ...'
    """
    if not bar.done:
        return f"{bar.label} ..."
    count = f"{bar.done:,}" if bar.total is None else f"{bar.done:,} of {bar.total:,}"
    return f"{bar.label}: {', '.join(filter(None, [count, bar.time(now), *bar.values]))}"
