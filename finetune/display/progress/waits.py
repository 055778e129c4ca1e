"""Waits: long work is announced where it runs, and displayed by the verb that the user called.

Nothing in between needs to know. What takes a second or less is not shown.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TypeVar

from finetune.display.lines import lines_shown, log
from finetune.display.progress.bar import Bar
from finetune.display.progress.display import Display
from finetune.display.progress.line_display import LineDisplay
from finetune.display.progress.notebook_display import NotebookDisplay, notebook
from finetune.display.progress.terminal_display import TerminalDisplay, can_redraw
from finetune.distributed.world import joined
from finetune.signals.stops import polled

T = TypeVar("T")

_display: ContextVar[Display | None] = ContextVar("finetune_display", default=None)
_terminal = threading.Lock()  # held by the display on the terminal, which has room for one


def announced(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Yield the items, counted by the display of the current verb, if any. A signal ends the pass between two items.

    Args:
        items: Items that may take long.
        what: What is done with them, such as `"Evaluating"`.
        total: Number of items, or None if it is unknown.

    Example:
        >>> list(announced("abc", "Reading", total=3))
        ['a', 'b', 'c']
    """
    display = _display.get()
    return polled(items if display is None else display.counted(items, Bar(what, total)))


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Announce work that is not counted, such as writing a file.

    Args:
        what: The work, such as `"Saving model.safetensors"`.

    Example:
        >>> with busy("Sorting"):
        ...     sorted([3, 1, 2])
        [1, 2, 3]
    """
    with displayed(Bar(what)):
        yield


@contextmanager
def displayed(bar: Bar) -> Iterator[float]:
    """Show a bar on the display of the current verb, if any, until the context exits.

    Yields:
        The seconds between two drawings, more often than which the bar need not change.
    """
    display = _display.get()
    if display is None:
        yield float("inf")
        return
    with display.under_way(bar):
        yield display.interval


@contextmanager
def waits_shown(shown: bool = True, *, logger: logging.Logger = log, display: Display | None = None) -> Iterator[None]:
    """Show the lines and the progress of one verb.

    A verb within another, such as `evaluate` in a callback of `fit`, shares its display, or its silence.

    Args:
        shown: Whether to show anything, also of verbs within.
        logger: Logger whose lines are shown.
        display: Display to use; None for the one that suits the place.
    """
    if _display.get() is not None:
        yield
        return
    with ExitStack() as stack:
        if not joined().leads:  # the first process speaks for all
            shown = False
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        if not shown:
            display = Display()
        elif display is None:
            display = _opened(stack, logger)
        if shown:
            stack.enter_context(lines_shown(display.show, logger))
        stack.callback(display.close)
        stack.callback(_display.reset, _display.set(display))
        yield


def _opened(stack: ExitStack, logger: logging.Logger) -> Display:
    """Return the display for a notebook, a terminal or anything else, and give the terminal back with the stack."""
    publish = notebook()
    if publish is not None:
        return NotebookDisplay(publish)
    if can_redraw(sys.stderr) and _terminal.acquire(blocking=False):
        stack.callback(_terminal.release)
        return TerminalDisplay()
    return LineDisplay(logger)


@contextmanager
def prints_on_standard_error() -> Iterator[None]:
    """Send the prints of other libraries to standard error, as standard output is for results."""
    with redirect_stdout(sys.stderr):
        yield
