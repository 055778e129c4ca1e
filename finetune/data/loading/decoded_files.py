"""Picture files that are decoded once, where every epoch makes another picture of the same pixels."""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from finetune.data.loading.free_memory import free_memory
from finetune.data.loading.picture_cache import BUDGET_SHARE
from finetune.data.preprocessing.augmentations import Augmentation, CacheableAugmentation
from finetune.data.preprocessing.base import PICTURE
from finetune.data.sources.base import Source
from finetune.data.sources.picture_files import PictureFiles

# By number, as the table of what is there holds them; a palette or depths beyond a byte are decoded anew.
_MODES = ("", "L", "RGB", "RGBA")
_PATIENCE = 1.0  # seconds; others hold the lock for microseconds


class Place(NamedTuple):
    """Where the pixels of a picture are."""

    mode: str
    width: int
    height: int
    begin: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.width * self.height * len(self.mode)


class DecodedFiles(Source):
    """The same samples as those of picture files, whose pixels stay in memory once they are decoded.

    The memory is shared by the processes that load, where these are forked, and taken as it is filled. When it is
    full the other pictures are decoded each time, as is a file that changed since. A copy in a process that was spawned
    is the plain files.

    Args:
        files: what is decoded.
        budget: how much memory to take at most, in bytes.
    """

    kind = PICTURE
    stochastic = False

    def __init__(self, files: PictureFiles, budget: int) -> None:
        self._files = files
        self._budget = budget
        unchanged = files.watch()
        assert unchanged is not None
        self._unchanged = unchanged
        self._pixels = mmap.mmap(-1, budget)
        table = mmap.mmap(-1, 8 * 4 * len(files) + 8)
        self._end = np.frombuffer(table, np.int64, 1)
        self._places = np.frombuffer(table, np.int64, offset=8).reshape(len(files), 4)
        self._lock = multiprocessing.Lock()

    def __reduce__(self) -> Any:
        return _itself, (self._files,)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        picture = self._picture(index)
        return picture if self._files.targets is None else (picture, self._files.targets[index])

    def name(self, index: int) -> str:
        return self._files.name(index)

    def _picture(self, index: int) -> Image.Image:
        place = self._place(index)
        if place is not None and self._unchanged(index):
            return Image.frombytes(
                place.mode, (place.width, place.height), self._pixels[place.begin : place.begin + place.size]
            )
        item = self._files[index]
        picture: Image.Image = item if self._files.targets is None else item[0]
        self._keep(index, picture)
        return picture

    def _place(self, index: int) -> Place | None:
        """Return where the pixels of a picture are, None if they are not there.

        The lock also sees to it, on any processor, that they were written before their place is read.
        """
        with self._locked() as locked:
            mode, *numbers = self._places[index].tolist() if locked else (0,)
        return Place(_MODES[mode], *numbers) if mode else None

    def _keep(self, index: int, picture: Image.Image) -> None:
        place = self._reserved(picture) if self._unchanged(index) else None
        if place is None:
            return
        self._pixels[place.begin : place.begin + place.size] = picture.tobytes()
        with self._locked() as locked:
            if locked:
                self._places[index] = _MODES.index(place.mode), *place[1:]

    def _reserved(self, picture: Image.Image) -> Place | None:
        """Take the room that a picture needs; None where there is none, or it is of another mode."""
        with self._locked() as locked:
            place = Place(picture.mode, picture.width, picture.height, int(self._end[0]))
            if not locked or place.mode not in _MODES or place.begin + place.size > self._budget:
                return None
            self._end[0] += place.size
            return place

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the lock, if it is to be had: a process that is killed while it holds it keeps it."""
        locked = self._lock.acquire(timeout=_PATIENCE)
        try:
            yield locked
        finally:
            if locked:
                self._lock.release()


def decoded_once(source: Source, augment: Augmentation | None) -> Source:
    """Return the source with its pictures decoded once; itself where that is not known to give the same.

    A function of the user's own may look at more of a picture than its pixels, such as where it came from.
    """
    pixels_only = isinstance(augment, CacheableAugmentation) and augment.uses_pixels_only
    if type(source) is not PictureFiles or not pixels_only:
        return source
    try:
        return DecodedFiles(source, int(BUDGET_SHARE * free_memory(torch.device("cpu"))))
    except (OSError, ValueError, ImportError):  # no memory is left or promised, or there are no locks
        return source


def _itself(files: PictureFiles) -> PictureFiles:
    return files
