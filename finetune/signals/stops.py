"""Signals: SIGINT and SIGTERM end long work at the next point where nothing is lost.

The first signal is a request. Passes over data look for it between two items, with `poll`; while an item is awaited,
it is granted at once; and a part that is `unbroken`, such as an update, is finished first. A second signal ends
everything at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _State:
    """State of the process's main thread, the only one that signals reach.

    Attributes:
        previous: Handlers from before the current verb, by signal; empty if no verb is under way.
        request: Exception that a signal asks for, not yet raised or on its way.
        name: Name of the signal.
        unbroken: Number of parts under way that are finished first.
        waiting: Number of parts under way in which a request is granted at once.
    """

    previous: dict[int, Any] = field(default_factory=dict)
    request: BaseException | None = None
    name: str = ""
    unbroken: int = 0
    waiting: int = 0


_state = _State()


@contextmanager
def signals_heeded() -> Iterator[None]:
    """End the work within at a safe point when SIGINT or SIGTERM arrives, with KeyboardInterrupt or exit code 143.

    The previous handlers return on exit. A custom handler is called as before, and if it raises KeyboardInterrupt or
    SystemExit, that waits for the safe point. Within itself, and in other threads than the main
    one, the context does nothing.

    Example:
        >>> with signals_heeded():
        ...     signal.raise_signal(signal.SIGTERM)
        ...     finished = True
        ...     poll()
        Traceback (most recent call last):
        SystemExit: 143
        >>> finished
        True
    """
    if _state.previous or not _in_main_thread():
        yield
        return
    _install()
    try:
        yield
    except Exception as error:
        if _state.request is not None:
            raise _state.request from error
        raise
    finally:
        requested = _state.request
        _uninstall()
    if requested is not None:  # since the last poll
        raise requested


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit(143) where it would end the process, so that the process cleans up.

    Example:
        >>> with exit_on_sigterm():
        ...     signal.raise_signal(signal.SIGTERM)
        Traceback (most recent call last):
        SystemExit: 143
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: _default(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def unbroken() -> Iterator[None]:
    """Finish the part within before a request is granted, because half of it would be lost."""
    if not _in_main_thread():
        yield
        return
    _state.unbroken += 1
    try:
        yield
    finally:
        _state.unbroken -= 1


@contextmanager
def interruptible() -> Iterator[None]:
    """Grant a request at once within, as for a part that changes nothing and may take long.

    If the part fails meanwhile, as it does when the same signal ended its worker processes, the request comes first.
    """
    if not _in_main_thread():
        yield
        return
    poll()
    _state.waiting += 1
    try:
        yield
    except Exception:
        poll()
        raise
    finally:
        _state.waiting -= 1
    poll()


def polled(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, and grant a request between two of them or while one is awaited.

    Example:
        >>> list(polled("abc"))
        ['a', 'b', 'c']
    """
    iterator, done = iter(items), object()
    while True:
        with interruptible():
            item: Any = next(iterator, done)
        if item is done:
            return
        yield item


def poll() -> None:
    """Raise what a signal has requested, unless the part under way is finished first."""
    if _state.request is not None and not _state.unbroken and _in_main_thread():
        raise _state.request.with_traceback(None)


def requested() -> bool:
    """Return whether a signal has made a request that is not granted yet.

    Example:
        >>> requested()
        False
    """
    return _state.request is not None


def grant() -> None:
    """Raise what a signal has requested, of this process or of another one that trains with it.

    Example:
        >>> with signals_heeded():
        ...     grant()
        Traceback (most recent call last):
        SystemExit: 143
    """
    if _state.request is None:
        _state.request, _state.name = SystemExit(128 + signal.SIGTERM), signal.SIGTERM.name
    raise _state.request.with_traceback(None)


def is_stop(error: BaseException) -> bool:
    """Return whether an exception is a granted request, and thus came at a point where nothing is lost."""
    return error is _state.request


def signal_name() -> str:
    """Return the name of the signal that made the request, or `""`.

    Example:
        >>> signal_name()
        ''
    """
    return _state.name


def heed_parent_only(worker: int, then: Callable[[int], object] | None = None) -> None:
    """Leave signals to the main process, which ends its workers itself: `worker_init_fn` of a DataLoader.

    A terminal or a scheduler signals all processes of a job at once, and workers that end first would fail the step
    that the main process is to finish.

    Args:
        worker: Number of the worker.
        then: The user's own `worker_init_fn`, or None.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if then is not None:
        then(worker)


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _install() -> None:
    for number in _SIGNALS:
        previous = signal.getsignal(number)
        if previous not in (signal.SIG_IGN, None):  # ignored, or set outside of Python
            _state.previous[number] = previous
            signal.signal(number, _on_signal)


def _uninstall() -> None:
    """Put the previous handlers back and forget a request."""
    global _state
    previous, _state = _state.previous, _State()
    for number, handler in previous.items():
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, handler)


def _on_signal(number: int, frame: FrameType | None) -> None:
    second = _state.request is not None
    previous = _state.previous.get(number)
    try:
        previous(number, frame) if callable(previous) else _default(number)
    except (KeyboardInterrupt, SystemExit) as wish:
        if second:
            _give_up()
            raise
        _state.request, _state.name = wish, signal.Signals(number).name
    if not second and _state.waiting:
        poll()


def _give_up() -> None:
    """Leave further signals to the previous handlers, as the work is ended wherever it is."""
    for number, handler in _state.previous.items():
        signal.signal(number, handler)


def _default(number: int) -> None:
    raise SystemExit(128 + number)


def _forget_in_child() -> None:
    """Give a forked process its own signals back."""
    with suppress(ValueError):  # forked by another thread than the main one
        _uninstall()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
