"""Files that must not be trusted."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.errors import DataError

SPECIAL = ("named pipe", "socket", "device", "folder")


class Touch:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def make_special(path: Path, kind: str) -> None:
    """Make one of `SPECIAL`, which are no regular files. The device is a link to one without end."""
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))


def tried(read: Callable[[Path], Any], path: Path) -> Any:
    """Return what a reader returns, or its DataError."""
    try:
        return read(path)
    except DataError as error:
        return error


def make_deep(folder: Path, depth: int = 25) -> None:
    """Make folders in folders, deeper than a path may be long."""
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("x" * 200, dir_fd=handle)
        below = os.open("x" * 200, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
