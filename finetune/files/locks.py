"""Locks on folders, which end with their process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Hold a folder, created if missing, against other users of this lock. An empty new one is removed on exit.

    The lock is on the folder itself, so that no file is left behind. On Windows, nothing is locked.

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
    handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        if handle is not None:
            os.close(handle)
        if created:
            with suppress(OSError):  # it holds files now
                folder.rmdir()
