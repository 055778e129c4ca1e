"""Locks on open files and folders, which end with their process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_held: set[int] = set()  # descriptors of locked folders


def take(handle: int, *, wait: bool = False) -> None:
    """Lock an open file against other users of this lock, until it is released or closed.

    Args:
        handle: Descriptor of the file, or of a folder where these can be opened.
        wait: Whether to wait for a lock that is taken; on Windows, nobody waits.

    Raises:
        BlockingIOError, PermissionError: If the lock is taken, in this process or another.
        OSError: If the file system has no locks.

    Example:
        >>> with open("one", "w") as file:
        ...     take(file.fileno())
        ...     release(file.fileno())
    """
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def release(handle: int) -> None:
    """Release a lock before its file is closed, which is needed where a forked process holds the file open, too.

    Example:
        >>> with open("one", "w") as file:
        ...     take(file.fileno())
        ...     release(file.fileno())
    """
    if sys.platform != "win32":
        fcntl.flock(handle, fcntl.LOCK_UN)


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Hold a folder, created if missing, against other users of this lock. An empty new one is removed on exit.

    The lock is on the folder itself, so that no file is left behind. It ends with this process, even if forked ones,
    such as the workers of a loader, live on. On Windows, nothing is locked.

    Raises:
        BlockingIOError: If the lock is taken, in this process or another.
        OSError: If the folder cannot be created, or its file system has no locks.

    Example:
        >>> with folder_locked(Path("runs")), folder_locked(Path("runs")):
        ...     pass
        Traceback (most recent call last):
        BlockingIOError: [Errno 11] Resource temporarily unavailable
    """
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = None if sys.platform == "win32" else os.open(folder, os.O_RDONLY)
    try:
        if handle is not None:
            take(handle)
            _held.add(handle)
        yield
    finally:
        if handle in _held:
            _held.discard(handle)
            release(handle)  # at once, wherever else the folder is open
        if handle is not None:
            os.close(handle)
        if created:
            with suppress(OSError):  # it holds files now
                folder.rmdir()


def _close_in_child() -> None:
    """Close the locked folders in a forked process, which would keep them locked when its parent is killed."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
