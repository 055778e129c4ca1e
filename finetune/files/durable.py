"""Durable files: a new version is staged beside the old one, synced to the disk and renamed into its place."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from finetune.files.locks import take
from finetune.files.regular import check_regular

_STAGED = re.compile(r"\..+\.[0-9a-f]{12}\.part", re.DOTALL)  # names of stages
_ABANDONED = 24 * 3600  # seconds after which a stage belongs to nobody, where locks cannot tell
_LOCKS = sys.platform != "win32"  # which renames no open file, so a stage is closed, and not locked, before it is moved


@contextmanager
def written(path: Path, *, keep_as: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing. It takes the place of the old one when the block ends, and not before.

    A link is followed, and the new file has the permissions of the old one. Stages that killed processes left behind in
    the folder are removed.

    Args:
        path: File to write.
        keep_as: Name that an existing file is kept under, on the same file system; None to replace it.

    Raises:
        OSError: If the file cannot be written. The old one is unchanged.

    Example:
        >>> with written(Path("notes.txt")) as file:
        ...     _ = file.write(b"whole")
        >>> Path("notes.txt").read_text()
        'whole'
    """
    path = Path(os.path.realpath(path))
    mode = _mode_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    staged, handle = _open_stage(path)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            if mode is not None:
                staged.chmod(mode)
            os.fsync(handle)
            if _LOCKS:  # while the lock still tells others that the stage is in use
                _replace(staged, path, keep_as)
        if not _LOCKS:
            _replace(staged, path, keep_as)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            staged.unlink()


def check_writable(path: Path) -> None:
    """Check that a file can be written, create its folder, and remove the stages that killed processes left there.

    Raises:
        OSError, ValueError: If it cannot.

    Example:
        >>> check_writable(Path("runs/model.safetensors"))
        >>> Path("runs").is_dir()
        True
    """
    path = Path(os.path.realpath(path))
    _mode_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    trial = _new_stage(path)
    os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    trial.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable, on systems that can sync a folder.

    Example:
        >>> sync_folder(Path("."))
    """
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _mode_of(path: Path) -> int | None:
    """Return the permissions of a file, or None if it does not exist.

    Raises:
        OSError: If it is a folder, a device or a pipe.
    """
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    check_regular(path, state)
    return stat.S_IMODE(state.st_mode)


def _new_stage(path: Path) -> Path:
    """Return a new path, whose name is shorter than file systems allow."""
    return path.with_name(f".{path.name[:50]}.{os.urandom(6).hex()}.part")


def _open_stage(path: Path) -> tuple[Path, int]:
    """Create a stage, and lock it."""
    while True:
        staged = _new_stage(path)
        handle = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if _LOCKS:
            with suppress(OSError):  # a file system without locks
                take(handle, wait=True)
        if os.fstat(handle).st_nlink:  # or another writer took it for abandoned before it was locked
            return staged, handle
        os.close(handle)


def _replace(staged: Path, path: Path, keep_as: Path | None) -> None:
    if keep_as is not None and path.exists():
        path.replace(keep_as)
    staged.replace(path)


def _remove_abandoned(folder: Path) -> None:
    for staged in folder.iterdir():
        if _STAGED.fullmatch(staged.name) and _is_abandoned(staged):
            with suppress(OSError):
                staged.unlink()


def _is_abandoned(staged: Path) -> bool:
    """Return whether no process is writing a stage: its writer would hold a lock on it."""
    try:
        handle = os.open(staged, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        state = os.fstat(handle)
        if _LOCKS and stat.S_ISREG(state.st_mode):
            with suppress(OSError):  # a file system without locks
                return _is_free(handle)
        return time.time() - state.st_mtime > _ABANDONED
    finally:
        os.close(handle)


def _is_free(handle: int) -> bool:
    try:
        take(handle)
    except BlockingIOError:
        return False
    return True
