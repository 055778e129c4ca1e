"""The lock that threads take before they draw from, seed or restore the random generators of the process.

Torch, `random` and NumPy have one generator for all threads. A thread that seeds it and draws holds the lock meanwhile,
so the draws of one tuner do not depend on the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock, get_ident


class FairLock:
    """A reentrant lock that waiting threads get one after the other.

    With `threading.RLock`, a thread that releases the lock and takes it again at once, as training does from update to
    update, may keep others waiting for as long as it runs.

    Attributes:
        kept: Function that returns a context which restores the state of the protected object, for `lent`.

    Example:
        >>> lock = FairLock()
        >>> with lock.held(), lock.held():
        ...     lock.is_mine
        True
    """

    def __init__(self) -> None:
        self.kept: Callable[[], AbstractContextManager[None]] = nullcontext
        self._next, self._lock = Lock(), Lock()
        self._owner: int | None = None
        self._depth = 0

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds the lock."""
        return self._owner == get_ident()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock within the context."""
        self._acquire(1)
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._release()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Leave the lock to other threads within the context, if this one holds it, and keep the state for this one."""
        if not self.is_mine:
            yield
            return
        with self.kept():
            depth, self._depth = self._depth, 0
            self._release()
            try:
                yield
            finally:
                self._acquire(depth)

    def after_fork(self) -> None:
        """Free the lock in a new process, which has none of the other threads."""
        self._next = Lock()
        if not self.is_mine:
            self._lock, self._owner, self._depth = Lock(), None, 0

    def _acquire(self, depth: int) -> None:
        if not self.is_mine:
            with self._next:  # held by the thread that waits, so that the last owner cannot overtake it
                self._lock.acquire()
            self._owner = get_ident()
        self._depth += depth

    def _release(self) -> None:
        self._owner = None
        self._lock.release()


GENERATORS = FairLock()

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=GENERATORS.after_fork)
