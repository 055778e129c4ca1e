"""Two caches that keep images in memory from the first epoch on.

`PreparedImages` keeps preprocessed images that are the same in every epoch: later epochs gather whole batches
and load nothing. `DecodedImages` keeps the pixels of decoded files, from which a random augmentation makes a new
image in every epoch. Both take memory as they fill, and read a file again after it has changed.
"""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finetune.data.preprocessing.augmentations import Augmentation, CacheableAugmentation
from finetune.data.preprocessing.base import IMAGE, InputPreprocessing
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.base import Source
from finetune.devices.free_memory import free_memory

# Default share of the free memory for the training images, and the same again for the validation images.
# Cached features may take half, which leaves a tenth free.
_BUDGET_SHARE = 0.2

# Modes of cached pixels; their index is stored. Other modes, such as palettes, are decoded each time.
_MODES = ("", "L", "RGB", "RGBA")
_LOCK_TIMEOUT = 1.0  # seconds; a process usually holds the lock for microseconds


def default_budget() -> int:
    """Return the default maximum size of a cache in bytes."""
    return int(_BUDGET_SHARE * free_memory(torch.device("cpu")))


# ---------------------------------------------------------------------- prepared images


class PreparedImages:
    """Prepared images uint8 [N, C, H, W] of a source, added batch by batch as they are loaded."""

    def __init__(self, source: Source, preprocessing: Preprocessing) -> None:
        self._targets = source.targets
        self._images = torch.empty(_shape(source, preprocessing), dtype=torch.uint8)
        self._filled = torch.zeros(len(source), dtype=torch.bool)
        self._unchanged = source.watch()

    def has(self, batches: Sequence[Tensor]) -> bool:
        """Return whether all samples of batches, int64 [B] each, are cached and unchanged. Ask before reading them."""
        indices = torch.cat([*batches, torch.empty(0, dtype=torch.int64)])
        filled = bool(self._filled[indices].all())
        changed = [] if self._unchanged is None else [k for k in indices.tolist() if not self._unchanged(k)]
        return filled and not changed

    def put(self, indices: Tensor, batch: Any) -> None:
        """Add the images of a batch, the samples at int64 [B]."""
        self._images[indices] = batch if self._targets is None else batch[0]
        self._filled[indices] = True

    def get(self, indices: Tensor) -> Any:
        """Return the batch of the samples at int64 [B], equal to the loaded one."""
        images = self._images[indices]
        return images if self._targets is None else [images, self._targets[indices]]


def cache_prepared(
    source: Source, preprocessing: InputPreprocessing | None, budget: int | None = None
) -> PreparedImages | None:
    """Return an empty cache for the prepared images of a source.

    Args:
        source: An indexed source.
        preprocessing: Preprocessing of its items.
        budget: Maximum number of bytes. None for the default.

    Returns:
        The cache, or None if the items differ between epochs, are not images, or exceed the budget.
    """
    if not _constant_images(source) or not isinstance(preprocessing, Preprocessing):
        return None
    needed = torch.Size(_shape(source, preprocessing)).numel()
    fits = needed <= (default_budget() if budget is None else budget)
    return PreparedImages(source, preprocessing) if fits else None


def _constant_images(source: Source) -> bool:
    return source.kind == IMAGE and source.indexed and not source.stochastic and source.collate_fn is None


def _shape(source: Source, preprocessing: Preprocessing) -> tuple[int, ...]:
    return len(source), preprocessing.channels, *preprocessing.crop_size


# ---------------------------------------------------------------------- decoded images


class _Slot(NamedTuple):
    """Location of the pixels of an image in the shared memory."""

    mode: str
    width: int
    height: int
    start: int

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.width * self.height * len(self.mode)

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.size)


class DecodedImages(Source):
    """A source of images that keeps the pixels of every image it has decoded.

    Forked worker processes share the memory. When it is full, further images are decoded each time. A
    copy in a spawned process is the original source, because it cannot share the memory.

    Args:
        source: A source of image files.
        budget: Maximum number of bytes.
        unchanged: Function that returns whether the file of a sample is as when first asked.
    """

    kind = IMAGE
    stochastic = False

    def __init__(self, source: Source, *, budget: int, unchanged: Callable[[int], bool]) -> None:
        self._source = source
        self._budget = budget
        self._unchanged = unchanged
        self._pixels = mmap.mmap(-1, budget)
        table = mmap.mmap(-1, 8 * 4 * len(source) + 8)
        self._end = np.frombuffer(table, np.int64, 1)
        self._slots = np.frombuffer(table, np.int64, offset=8).reshape(len(source), 4)
        self._lock = multiprocessing.Lock()

    def __reduce__(self) -> Any:
        return _identity, (self._source,)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        image = self._image(index)
        return image if self._source.targets is None else (image, self._source.targets[index])

    def name(self, index: int) -> str:
        return self._source.name(index)

    def _image(self, index: int) -> Image.Image:
        slot, unchanged = self._slot(index), self._unchanged(index)  # asked before the file is read
        if slot is not None and unchanged:
            return Image.frombytes(slot.mode, (slot.width, slot.height), self._pixels[slot.span])
        item = self._source[index]
        image: Image.Image = item if self._source.targets is None else item[0]
        self._add(index, image)
        return image

    def _slot(self, index: int) -> _Slot | None:
        """Return the slot of an image, or None if it is not cached.

        The lock also orders the write of the pixels before this read, on every processor.
        """
        with self._try_lock() as locked:
            mode, *numbers = self._slots[index].tolist() if locked else (0,)
        return _Slot(_MODES[mode], *numbers) if mode else None

    def _add(self, index: int, image: Image.Image) -> None:
        slot = self._reserve(image) if self._unchanged(index) else None
        if slot is None:
            return
        self._pixels[slot.span] = image.tobytes()
        with self._try_lock() as locked:
            if locked:
                self._slots[index] = _MODES.index(slot.mode), *slot[1:]

    def _reserve(self, image: Image.Image) -> _Slot | None:
        """Reserve memory for an image. Return None if the mode is not cached or the memory is full."""
        with self._try_lock() as locked:
            slot = _Slot(image.mode, image.width, image.height, int(self._end[0]))
            if not locked or slot.mode not in _MODES or slot.start + slot.size > self._budget:
                return None
            self._end[0] += slot.size
            return slot

    @contextmanager
    def _try_lock(self) -> Iterator[bool]:
        """Hold the lock if it is available, with a timeout because a killed process never releases it."""
        locked = self._lock.acquire(timeout=_LOCK_TIMEOUT)
        try:
            yield locked
        finally:
            if locked:
                self._lock.release()


def cache_decoded(source: Source, augment: Augmentation | None, budget: int | None = None) -> Source:
    """Return a source that decodes each image file once.

    Args:
        source: Any source.
        augment: Augmentation of its images. A custom function may use more than the pixels, such as
            the file name, so it gets the images of the original source.
        budget: Maximum number of bytes. None for the default.

    Returns:
        The caching source, or the original one if its images are in memory already or may differ
        between epochs, if the augmentation may use more than pixels, or if no memory is available.
    """
    pixels_only = isinstance(augment, CacheableAugmentation) and augment.uses_pixels_only
    unchanged = source.watch() if pixels_only and _constant_images(source) else None
    if unchanged is None:
        return source
    try:
        return DecodedImages(source, budget=default_budget() if budget is None else budget, unchanged=unchanged)
    except (OSError, ValueError, ImportError):  # no memory, or a platform without locks
        return source


def _identity(source: Source) -> Source:
    return source
