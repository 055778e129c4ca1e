"""`Paths`: the paths of any number of files in one piece of memory."""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

_CODEC = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # as `os.fsencode`, which takes twice as long


class Paths(Sequence[str]):
    """Paths of files, which take their length in bytes and 16 more each.

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
        content, bounds = bytearray(), array("q", [0])
        for path in paths:
            content += os.fspath(path).encode(*_CODEC)
            bounds.append(len(content))
        self._content = bytes(content)
        self._starts, self._ends = np.array(bounds[:-1], np.int64), np.array(bounds[1:], np.int64)

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
        content = self._content
        for start, end in zip(self._starts.tolist(), self._ends.tolist(), strict=True):
            yield content[start:end].decode(*_CODEC)
