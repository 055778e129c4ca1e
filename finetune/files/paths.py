"""`Paths`: the paths of any number of files in one piece of memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

_CODEC = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # as `os.fsencode`, which takes twice as long
_AT_ONCE = 4_096  # paths that become bytes, or text, in one call


class Paths(Sequence[str]):
    """Paths of files, which take their length in bytes and 17 more each.

    As Python objects, they would take several times that, and again in each worker: a forked process shares memory
    until it is written to, and reading an object writes its count of references.

    Args:
        paths: The paths, which are read once.

    Example:
        >>> paths = Paths(["dogs/a.jpg", "dogs/b.jpg", "dogs/c.jpg"])
        >>> paths[1], list(paths[[2, 0]])
        ('dogs/b.jpg', ['dogs/c.jpg', 'dogs/a.jpg'])
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]] = ()) -> None:
        content, ends, rest = bytearray(), [np.empty(0, np.int64)], iter(paths)
        while texts := [os.fspath(path) for path in islice(rest, _AT_ONCE)]:
            part = ("\0".join(texts) + "\0").encode(*_CODEC)  # no path has a null character
            ends.append(len(content) + np.flatnonzero(np.frombuffer(part, np.uint8) == 0))
            content += part
        self._content, self._ends = bytes(content), np.concatenate(ends)
        self._starts = np.r_[0, self._ends + 1][:-1]

    @property
    def distinct(self) -> bool:
        """Whether no path is there twice."""
        hashes = np.fromiter(map(hash, self), np.int64, len(self))
        hashes.sort()
        return bool((hashes[1:] != hashes[:-1]).all())

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        """Return the path at an index, or the paths at a slice or at int64 [M], which share the memory."""
        starts, ends = self._starts[index], self._ends[index]
        if np.ndim(starts) == 0:
            return self._content[starts:ends].decode(*_CODEC)
        part = Paths()
        part._content, part._starts, part._ends = self._content, starts, ends
        return part

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            starts, ends = self._starts[first : first + _AT_ONCE], self._ends[first : first + _AT_ONCE]
            if (starts[1:] == ends[:-1] + 1).all():  # one after the other in memory
                yield from self._content[starts[0] : ends[-1]].decode(*_CODEC).split("\0")
            else:
                pairs = zip(starts.tolist(), ends.tolist(), strict=True)
                yield from (self._content[start:end].decode(*_CODEC) for start, end in pairs)
