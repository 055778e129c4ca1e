"""`Bar`: work under way, its count, and the time it will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

PATIENCE = 1.0  # seconds without a word


@dataclass
class Bar:
    """Work under way: training, a pass over items, or a part that is not counted.

    Attributes:
        label: Words for the work, such as `"Evaluating batches"`.
        total: Number of items, or None if it is unknown.
        done: Number of finished items.
        doing: Words for the current part of the work.
        values: Values to read with it, such as `"loss 0.51"`, the most important first.
        end: Expected end in seconds of `time.monotonic`, or None.
        by_items: Whether the items tell the time left where no end is expected.
        at_least: Whether more work follows than the expected end accounts for.
        patience: Seconds after which the work is shown.
        begun: Beginning in seconds of `time.monotonic`.

    Example:
        >>> bar = Bar("Reading", total=40, done=10, begun=0.0)
        >>> bar.count(), bar.time(now=5.0)
        ('10/40', '0:15 left')
    """

    label: str
    total: int | None = None
    done: int = 0
    doing: str = ""
    values: Sequence[str] = ()
    end: float | None = None
    by_items: bool = True
    at_least: bool = False
    patience: float = PATIENCE
    begun: float = field(default_factory=time.monotonic)

    def count(self) -> str:
        """Return the count of items, or `""` if none are counted."""
        if self.total is None:
            return f"{self.done:,}" if self.done else ""
        total = f"{self.total:,}"
        return f"{min(self.done, self.total):>{len(total)},}/{total}"

    def time(self, now: float) -> str:
        """Return the time left, the time passed if the end is unknown, or `""` before the first item."""
        if self.total is None and self.end is None and self.by_items:
            return clock(now - self.begun)
        left = self._seconds_left(now)
        return "" if left is None else f"{clock(left)}{'+' * self.at_least} left"

    def _seconds_left(self, now: float) -> float | None:
        if self.end is not None:
            return max(0.0, self.end - now)
        if not self.by_items or not self.done or not self.total:
            return None
        return (now - self.begun) * max(0, self.total - self.done) / self.done


def clock(seconds: float) -> str:
    """Return a time as on a clock.

    Example:
        >>> clock(7.4), clock(83), clock(3723)
        ('0:07', '1:23', '1:02:03')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def visible(bars: Sequence[Bar], now: float) -> list[Bar]:
    """Return the outermost and the innermost bar that have lasted long enough to be shown, at most two.

    Example:
        >>> bars = [Bar(label, begun=begun) for label, begun in (("fit", 0.0), ("save", 5.0), ("verify", 5.5))]
        >>> [bar.label for bar in visible(bars, now=6.2)]
        ['fit', 'save']
    """
    due = [bar for bar in bars if now - bar.begun >= bar.patience]
    return due[:1] + due[1:][-1:]
