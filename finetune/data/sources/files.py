"""Sources of raw items: files of pictures and sound, and texts, pictures and waveforms in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from finetune.data.preprocessing.base import PICTURE, SOUND
from finetune.data.sources.base import Indices, Source
from finetune.data.sources.labels import Classes
from finetune.data.sources.picture_files import SUFFIXES, is_picture_file, read_picture, verify_picture
from finetune.data.sources.sound_files import WAVE_SUFFIXES, is_wave_file, read_waveform
from finetune.errors import DataError

_GONE = 0


class Files(Source):
    """Files of one kind, an item each, with or without targets."""

    noun: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    set_aside = True

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Tensor | None = None,
        classes: Classes | None = None,
        folder: Path | None = None,
    ) -> None:
        self.paths = list(paths)
        self.targets = targets
        self.classes = classes
        self.folder = folder

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        item = self.read(self.paths[index])
        return item if self.targets is None else (item, self.targets[index])

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def subset(self, indices: Indices) -> Files:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        targets = None if self.targets is None else self.targets[chosen]
        return type(self)([self.paths[i] for i in chosen.tolist()], targets, self.classes, self.folder)

    @staticmethod
    def is_file(path: str | os.PathLike[str]) -> bool:
        """Whether a file is of this kind, by its suffix."""
        raise NotImplementedError

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Any:
        """Return the item in a file. Raises DataError if it is damaged."""
        raise NotImplementedError

    @staticmethod
    def verify(path: str | os.PathLike[str]) -> Any:
        """Read a file to the end, and return the item where that is cheap. Raises DataError if it is damaged."""
        raise NotImplementedError


class Unchanged:
    """Tells of each file whether it is as it was when this was made, by its size and times of change.

    A file that is gone counts: what was read of it still holds.
    """

    def __init__(self, files: Files) -> None:
        self._paths = files.paths
        self._states = states_of(files)

    def __call__(self, index: int) -> bool:
        return _state_of(self._paths[index]) in (_GONE, self._states[index])


def states_of(files: Files) -> np.ndarray:
    """Return int64 [N], a number for each file that is another when it changes."""
    return np.array([_state_of(path) for path in files.paths], np.int64)


class PictureFiles(Files):
    """Picture files."""

    kind = PICTURE
    noun = "picture"
    suffixes = SUFFIXES
    is_file = staticmethod(is_picture_file)
    read = staticmethod(read_picture)
    verify = staticmethod(verify_picture)


class WaveFiles(Files):
    """Sound files."""

    kind = SOUND
    noun = "sound file"
    suffixes = WAVE_SUFFIXES
    is_file = staticmethod(is_wave_file)
    read = staticmethod(read_waveform)
    verify = staticmethod(read_waveform)


def _state_of(path: Path) -> int:
    try:
        state = path.stat()
    except OSError:
        return _GONE
    return hash((state.st_size, state.st_mtime_ns, state.st_ctime_ns))


def is_raw_file(path: str | os.PathLike[str]) -> bool:
    """Whether `path` has the suffix of a picture or of a sound file."""
    return is_picture_file(path) or is_wave_file(path)


def files(
    paths: Sequence[Path],
    targets: Tensor | None = None,
    classes: Classes | None = None,
    folder: Path | None = None,
) -> Files:
    """Return a source of pictures, or of sound where the paths end so.

    Raises:
        DataError: some do and some do not.
    """
    sound = [is_wave_file(path) for path in paths]
    if any(sound) and not all(sound):
        raise DataError(
            f"Some files are sound and others are not, as '{paths[sound.index(True)]}' and "
            f"'{paths[sound.index(False)]}'. Expected one kind."
        )
    return (WaveFiles if any(sound) else PictureFiles)(paths, targets, classes, folder)


class RawItems(Source):
    """Raw items in memory.

    Args:
        items: [N], all of one kind: strings, `TextPair`s, PIL pictures, 1-d arrays.
        kind: which.
        targets: [N, ...] or None.
        classes: names of the class indices in `targets`, or None.
        table: the file they are from, or None.
    """

    def __init__(
        self,
        items: Sequence[Any],
        kind: str,
        targets: Tensor | None = None,
        classes: Classes | None = None,
        *,
        table: Path | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        self.items = items
        self.kind: str = kind
        self.targets = targets
        self.classes = classes
        self.table = table
        self.set_aside = table is not None
        self._rows = range(len(items)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        item = self.items[self._rows[index]]
        return item if self.targets is None else (item, self.targets[index])

    def raw(self) -> Iterator[Any]:
        """Yield the items without their targets."""
        return (self.items[row] for row in self._rows)

    def name(self, index: int) -> str:
        row = self._rows[index]
        return f"sample {row}" if self.table is None else f"row {row + 1} of '{self.table}'"

    def subset(self, indices: Indices) -> RawItems:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        targets = None if self.targets is None else self.targets[chosen.to(self.targets.device)]
        rows = [self._rows[i] for i in chosen.tolist()]
        return RawItems(self.items, self.kind, targets, self.classes, table=self.table, rows=rows)
