"""Progress of passes over data: a bar on a terminal, one line elsewhere, and nothing for those of a second or less.

A pass is announced where it runs, with `announced`, and displayed by the verb that the user called, with
`waits_shown`; nothing in between needs to know.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from finetune.display.lines import lines_shown, log
from finetune.signals.stops import polled

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")
Watcher = Callable[[Iterable[Any], str, int | None], Iterable[Any]]

INTERVAL = 0.2  # seconds between two updates of a bar

_PATIENCE = 1.0  # seconds without a word
_watcher: ContextVar[Watcher | None] = ContextVar("finetune_watcher", default=None)


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
    watcher = _watcher.get()
    return polled(items if watcher is None else watcher(items, what, total))


@contextmanager
def waits_shown(shown: bool = True) -> Iterator[None]:
    """Show the lines and the progress of one verb.

    Nothing more is shown within another verb, such as `evaluate` in a callback of `fit`, which has its own display.

    Args:
        shown: Whether to show anything, also of verbs within.
    """
    with ExitStack() as stack:
        if shown and _watcher.get() is None:
            stack.enter_context(lines_shown())
            token = _watcher.set(patient)
        else:
            token = _watcher.set(_silent)
        stack.callback(_watcher.reset, token)
        yield


def patient(
    items: Iterable[T], what: str, total: int | None, *, console: Console | None = None, patience: float = _PATIENCE
) -> Iterator[T]:
    """Yield the items, and show how many are done once they have taken `patience` seconds."""
    begun = time.monotonic()
    due = begun + patience
    bar: Progress | None = None
    with ExitStack() as stack:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now >= due:
                due = now + INTERVAL
                if bar is not None:
                    bar.update(bar.task_ids[-1], completed=done)
                elif (console := console or terminal()).is_terminal:
                    bar = stack.enter_context(new_bar(console))
                    bar.add_task(what, total=total, completed=done)
                else:
                    log.info(f"{what}{_so_far(done, total, now - begun)}")
                    due = float("inf")  # one line says enough
            yield item


def terminal() -> Console:
    """Return the console for bars: standard error, so that standard output holds only results."""
    from rich.console import Console

    return Console(stderr=True)


def new_bar(console: Console, *, disable: bool = False) -> Progress:
    """Return a bar that counts tasks on a console, and disappears when it stops."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What is printed meanwhile appears above the bar, unless it goes to a file.
    to_terminal = sys.stdout is not None and sys.stdout.isatty()
    return Progress(
        *columns,
        console=console,
        transient=True,
        refresh_per_second=4,
        disable=disable,
        redirect_stdout=to_terminal,
    )


def _silent(items: Iterable[T], what: str, total: int | None) -> Iterable[T]:
    return items


def _so_far(done: int, total: int | None, seconds: float) -> str:
    if total is None or not done:
        return " ..."
    return f": {done:,} of {total:,}, about {seconds * (total - done) / done:,.0f} s left"
