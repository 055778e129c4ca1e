"""Simulated power cuts. The disk keeps the last synced state of each file and folder, and any part of later writes.

A file that was not synced has lost its end, and a rename that was not synced is done or not. Every such disk must hold
a whole checkpoint, with all progress that a finished save promised, and none that is damaged.
"""

from __future__ import annotations

import os
import random
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.reliability.children import in_child
from benchmarks.reliability.kills import progress, unreadable
from benchmarks.reliability.safeties import everywhere, take_out
from benchmarks.reliability.setups import content
from benchmarks.rows import Row
from finetune.files import durable

TITLE = "Power cuts"
COUNTS = {
    "cuts": "power cuts",
    "unreadable": "unreadable files",
    "lost": "lost checkpoints",
}
FAULTS = ("unreadable", "lost")
CONTROLS = ("syncing", "the sync of folders")

_RUN = "CSVLogger, metrics"
_CUTS = 25  # of a trial


def trials(*, sample: bool) -> Iterator[tuple[str, str, int]]:
    """Yield the safety that is taken out, the case and the number of each trial."""
    for number in range(1 if sample else 8):
        yield "", _RUN, number
    for safety in CONTROLS:
        yield safety, _RUN, 0


def run(safety: str, case: str, draw: random.Random) -> Row:
    """Run many times, and look at the disk after a power cut within each."""
    found: Row = {"cuts": 0, "unreadable": 0, "lost": 0}
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(_CUTS):
            disk = Path(scratch) / f"disk{i}"
            disk.mkdir()
            journal = partial(Journal, draw.randrange(_operations(safety)), disk, draw.getrandbits(32))
            ended = in_child(partial(_recorded, safety, case, Path(scratch) / f"run{i}", journal))
            found["cuts"] += 1
            found["unreadable"] += len(unreadable(disk))
            found["lost"] += progress(disk) < tuple(ended.value[1])
    return found


class PowerCutError(BaseException):
    """The power is cut."""


class Journal:
    """What a disk is sure to hold of a folder, and what it may hold.

    Args:
        end: Number of operations after which the power is cut; None for never.
        disk: Folder for the files that survive the cut.
        seed: Seed of the choice among possible survivors.
    """

    def __init__(self, end: int | None, disk: Path | None = None, seed: int = 0) -> None:
        self.end, self.disk, self.draw = end, disk, random.Random(seed)
        self.operations = 0
        self.promised: tuple[int, ...] = ()  # progress of the last checkpoint whose writing has ended
        self._files: dict[int, bytes] = {}  # synced content by inode
        self._entries: dict[str, int] = {}  # synced inodes by name
        self._pending: list[tuple[str, str, int]] = []  # old name, new name and inode of renames that are not synced

    def record(self, place: Path) -> None:
        """Record the operations of this process in a folder."""
        sync, replace, written = os.fsync, Path.replace, durable.written

        def fsync(handle: int) -> None:
            sync(handle)
            state = os.fstat(handle)
            if stat.S_ISDIR(state.st_mode):
                self._sync_folder(len(self._pending))
            else:
                self._files[state.st_ino] = os.pread(handle, state.st_size, 0)
            self._count(place)

        def rename(old: Path, new: Any) -> Path:
            inode = old.stat().st_ino
            moved = replace(old, new)
            self._pending.append((old.name, Path(new).name, inode))
            self._count(place)
            return moved

        @contextmanager
        def promising(path: Path, **options: Any) -> Iterator[BinaryIO]:
            with written(path, **options) as file:
                yield file
            self.promised = max(self.promised, progress(place))

        os.fsync, Path.replace = fsync, rename  # type: ignore[assignment, method-assign]
        everywhere(written, promising)

    def _count(self, place: Path) -> None:
        self.operations += 1
        if self.operations - 1 == self.end:
            self._cut(place)
            raise PowerCutError

    def _sync_folder(self, renames: int) -> None:
        """Apply the first pending renames to the synced folder."""
        for old, new, inode in self._pending[:renames]:
            self._entries.pop(old, None)
            self._entries[new] = inode
        del self._pending[:renames]

    def _cut(self, place: Path) -> None:
        """Write the surviving files: synced content, a part of other content, and some of the pending renames."""
        assert self.disk is not None
        now = {path.stat().st_ino: path for path in place.iterdir()}
        self._sync_folder(self.draw.randint(0, len(self._pending)))
        for name, inode in self._entries.items():
            content = self._files.get(inode)
            if content is None:
                path = now.get(inode)
                content = b"" if path is None else path.read_bytes()
                content = content[: self.draw.randint(0, len(content))]
            (self.disk / name).write_bytes(content)


@cache
def _operations(safety: str) -> int:
    """Return the number of operations of the run. The parent imports what it needs."""
    with tempfile.TemporaryDirectory() as scratch:
        content(_RUN, Path(scratch) / "first")
        ended = in_child(partial(_recorded, safety, _RUN, Path(scratch) / "run", partial(Journal, None)))
        return int(ended.value[0])


def _recorded(safety: str, name: str, place: Path, journal: Callable[[], Journal]) -> tuple[int, list[int]]:
    take_out(safety)
    recorded = journal()
    recorded.record(place)
    with suppress(PowerCutError):
        content(name, place)
    return recorded.operations, list(recorded.promised)
