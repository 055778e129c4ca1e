"""Regular files: what a path names is looked at before it is read, because a pipe or a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def opened(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: If it cannot be read, or is a folder, a device, a named pipe or a socket.
        ValueError: If the path has a null character.

    Example:
        >>> with opened(Path("dog.png")) as file:
        ...     file.read(4)
        b'\\x89PNG'
    """
    # Opening a pipe waits for a writer unless told not to; the flag has no effect on regular files.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        check_regular(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: Path, state: os.stat_result | None = None) -> None:
    """Check that a path names a regular file, also through a link.

    Args:
        path: Path to check.
        state: Its state, if it is known.

    Raises:
        OSError: If it does not exist, or is a folder, a device, a named pipe or a socket.

    Example:
        >>> check_regular(Path("dogs"))
        Traceback (most recent call last):
        OSError: [Errno 22] Expected a regular file, but this is a folder: 'dogs'
    """
    mode = (path.stat() if state is None else state).st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "special file")
        raise OSError(errno.EINVAL, f"Expected a regular file, but this is a {kind}", os.fspath(path))
