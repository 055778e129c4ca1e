"""Regular files: what a path names is looked at before it is read, because a pipe or a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from finetune.files.remote import is_url, read

_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFLNK: "link",
}


def opened(path: str | Path) -> BinaryIO:
    """Open a regular file, or a remote one, for reading.

    Raises:
        OSError: If it cannot be read, or is a folder, a device, a named pipe or a socket.
        ValueError: If the path has a null character.

    Example:
        >>> with opened(Path("dog.png")) as file:
        ...     file.read(4)
        b'\\x89PNG'
    """
    return read(os.fspath(path)) if is_url(path) else os.fdopen(_opened(path, os.O_RDONLY), "rb")


def opened_directly(path: Path, flags: int) -> int:
    """Open a regular file, but not through a link, and return its descriptor.

    Args:
        path: File to open.
        flags: Flags of `os.open`.

    Raises:
        OSError: If it cannot be opened, is not a regular file, or is to be written and has a second name.

    Example:
        >>> os.close(opened_directly(Path("notes.txt"), os.O_RDWR | os.O_CREAT))
    """
    with suppress(FileNotFoundError):
        check_regular(path, path.lstat())  # its error is clearer than that of `O_NOFOLLOW`, which notices later changes
    handle = _opened(path, flags | getattr(os, "O_NOFOLLOW", 0))
    if flags & (os.O_WRONLY | os.O_RDWR) and os.fstat(handle).st_nlink > 1:
        os.close(handle)
        raise OSError(errno.EINVAL, "Expected a file with one name, but this has several", os.fspath(path))
    return handle


def check_regular(path: str | Path, state: os.stat_result | None = None) -> None:
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
    mode = (os.stat(path) if state is None else state).st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "special file")
        raise OSError(errno.EINVAL, f"Expected a regular file, but this is a {kind}", os.fspath(path))


def _opened(path: str | Path, flags: int) -> int:
    # Opening a pipe waits for a writer unless told not to; the flag has no effect on regular files.
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0), 0o666)
    try:
        check_regular(path, os.fstat(handle))
    except BaseException:
        os.close(handle)
        raise
    return handle
