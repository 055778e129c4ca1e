"""Batches on the host: samples read, augmented and collated, in this process or in workers."""

from __future__ import annotations

import os
import re
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from finetune.data.batch import target_of
from finetune.data.preprocessing.augmentations import Augmentation
from finetune.data.preprocessing.base import TEXT, InputPreprocessing, kind_of
from finetune.data.randomness import preserved, reseed, seed_of
from finetune.data.sources.base import Source
from finetune.data.sources.labels import plain_label
from finetune.errors import ArgumentError, DataError
from finetune.nested import is_group, tensors_of
from finetune.signals.stops import heed_parent_only

Batch = Any
# The epoch and the index of each sample. With fixed views, the view takes the place of the epoch.
Keys = list[tuple[int, int]]

_MAX_EXPLAINED = 1000  # samples of a loader that are read to explain its error
# What torch says if a worker has died, or has no room for a batch.
_DEATH = r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)|shared memory|</torch_"

_SIGNAL_SECONDS = 1.0

_COLLATE_HINT = "To batch samples of this kind, give the dataset a `collate_fn`, or pass a DataLoader."


@dataclass
class Failure:
    """A DataError returned from a worker, because torch would bury a raised one in a traceback."""

    message: str


@dataclass
class Samples:
    """Loader of the batch for any (epoch, index) or (view, index) pairs, bit for bit the same in every process.

    Attributes:
        source: Indexed source of the samples, or a stream whose items are only prepared and collated.
        seed: Seed of the run. A sample's augmentation is seeded by it, the epoch and the index.
        preprocessing: Preprocessing of raw items, or None.
        augment: Augmentation of images, or None.
        views: Augmentation of each view if the number of views per sample is fixed, otherwise empty.
    """

    source: Source
    seed: int
    preprocessing: InputPreprocessing | None = None
    augment: Augmentation | None = None
    views: tuple[Augmentation, ...] = ()

    def __getitems__(self, keys: Keys) -> Batch | Failure:
        """Load a batch in a worker, for torch's DataLoader."""
        try:
            return self.load(keys)
        except DataError as error:
            return Failure(str(error))

    def load(self, keys: Keys) -> Batch:
        """Load the samples of `keys` and collate them."""
        with preserved() if self._draws else nullcontext():
            items = [self._sample(*key) for key in keys]
        return self.collate(items, [index for _, index in keys], self.source.name)

    def collate(self, items: list[Any], indices: Sequence[int], name: Callable[[int], str]) -> Batch:
        """Collate prepared items into a batch, with the source's own `collate_fn` if it has one.

        Raises:
            DataError: If the items do not form a batch, or shared memory is full.
        """
        with worker_deaths_named():
            return _shared(self._collated(items, indices, name))

    def _collated(self, items: list[Any], indices: Sequence[int], name: Callable[[int], str]) -> Batch:
        if self.source.collate_fn is not None:
            return self.source.collate_fn(items)
        if self.source.kind is None:
            items = list(map(_native, items))
        try:
            return default_collate(items) if self.source.kind is None else self._collate_raw(items)
        except (RuntimeError, TypeError, KeyError, ValueError) as error:
            if re.search(_DEATH, str(error)):
                raise
            raise shape_error(items, indices, name) or DataError(
                f"{name(indices[0])} to {name(indices[-1])} do not form a batch: {error}. {_COLLATE_HINT}"
            ) from error

    def prepare(self, item: Any, name: str, epoch: int = 0) -> Any:
        """Prepare the raw item in `item`, the first of a tuple, and leave the others unchanged."""
        if self.source.kind is None:
            return item
        try:
            if isinstance(item, (tuple, list)):
                return (self._prepared(item[0], epoch), *item[1:])
            return self._prepared(item, epoch)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error

    def _collate_raw(self, items: list[Any]) -> Batch:
        assert self.preprocessing is not None
        if not isinstance(items[0], tuple):
            return self.preprocessing.collate(items)
        inputs, *rest = zip(*items, strict=True)
        return [self.preprocessing.collate(inputs), *(default_collate(list(values)) for values in rest)]

    def _sample(self, epoch: int, index: int) -> Any:
        if self._draws:
            reseed(self.seed, epoch, index)
        return self.prepare(self.source[index], self.source.name(index), epoch)

    @property
    def _draws(self) -> bool:
        """Whether the augmentation or the source may draw random numbers."""
        return self.augment is not None or self.source.stochastic

    def _prepared(self, item: Any, epoch: int) -> Any:
        assert self.preprocessing is not None
        augment = self.views[epoch] if self.views else self.augment
        if augment is None:
            return self.preprocessing.prepare(item)
        result = augment(item)
        if isinstance(result, Image.Image):
            return self.preprocessing.prepare(result)
        if isinstance(result, Tensor) and (result.dtype == torch.uint8 or result.is_floating_point()):
            return result
        kind = f"a {result.dtype} tensor" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise ArgumentError(
            f"Expected the augmentation to return a PIL image, a uint8 tensor [C, H, W], or a float tensor that is "
            f"already normalized, but got {kind}."
        )


@contextmanager
def worker_deaths_named() -> Iterator[None]:
    """Name the cause if a worker process dies. torch says it by a signal, so in whatever the main thread is doing.

    Raises:
        DataError: In place of what torch raises.
    """
    try:
        with _accounts_awaited():
            yield
    except RuntimeError as error:
        if not re.search(_DEATH, str(error)):
            raise
        raise _no_memory(error) from error


@contextmanager
def _accounts_awaited() -> Iterator[None]:
    """Wait for torch's account of a death, which comes by a signal, if a batch breaks off because of it.

    Raises:
        RuntimeError: The account. Awaited, it does not interrupt what comes next.
        DataError: If none has come.
    """
    try:
        yield
    except (ConnectionError, EOFError) as error:
        if "multiprocessing" not in "".join(traceback.format_exception(error)):
            raise  # the user's own, for example of a download
        time.sleep(_SIGNAL_SECONDS)
        raise _no_memory(error) from error


def _no_memory(error: Exception) -> DataError:
    return DataError(
        f"A worker process that loads the data died ({(str(error) or type(error).__name__).splitlines()[-1]}), most "
        "often for lack of memory or shared memory. Free some, enlarge /dev/shm (docker run --shm-size=8g), or pass a "
        "smaller batch_size."
    )


class EpochBatches:
    """A batch sampler that can be set to another epoch while the workers stay alive."""

    def __init__(self) -> None:
        self.batches: Iterable[Keys] = ()

    def __iter__(self) -> Iterator[Keys]:
        return iter(self.batches)


class WorkerPool:
    """Worker processes that load batches of `samples` and persist between epochs."""

    def __init__(self, samples: Samples, workers: int, *, pin_memory: bool) -> None:
        self._sampler = EpochBatches()
        self._loader: DataLoader[Any] = DataLoader(
            samples,  # type: ignore[arg-type]
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=heed_parent_only,
            persistent_workers=True,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(seed_of(samples.seed, "workers")),  # not the global one
        )
        # The garbage collector may find the pool in a cycle with an error and its frames. It would take the queues of
        # the workers first, and torch would then wait five seconds for each.
        weakref.finalize(self, _end_workers, self._loader)

    def load(self, batches: Iterable[Keys]) -> Iterator[Batch]:
        """Yield the batches in order.

        Raises:
            DataError: If a worker raised it.
        """
        self._sampler.batches = batches
        for batch in self._loader:
            if isinstance(batch, Failure):
                raise DataError(batch.message)
            yield batch


def _end_workers(loader: DataLoader[Any]) -> None:
    loader._iterator = None


def default_workers(source: Source, steps: int) -> int:
    """Return the number of worker processes that pay off for a source, or 0."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if source.vectorized or source.kind == TEXT or cores <= 2:  # tokenizers have their own threads
        return 0
    return min(8, cores - 1, steps)


def shape_error(items: Sequence[Any], indices: Sequence[int], name: Callable[[int], str]) -> DataError | None:
    """Return an error that names the first two items whose tensors differ in shape, or None.

    Raises:
        DataError: If a label is missing, or neither a name nor numbers.
    """
    first = shapes_of(items[0])
    for item, index in zip(items, indices, strict=True):
        label = target_of(item)
        if is_group(item) and len(item) > 1 and not isinstance(label, (Tensor, np.ndarray, list, tuple, dict)):
            plain_label(label, index, name)
        shapes = shapes_of(item)
        if (
            isinstance(first, list)
            and isinstance(shapes, list)
            and first[:1] == shapes[:1]
            and first[1:2] != shapes[1:2]
        ):
            return DataError(
                f"Labels do not form a batch: that of {name(indices[0])} is {_form(first)}, that of {name(index)} is "
                f"{_form(shapes)}. Expected a name for every sample, or numbers of one shape. {_COLLATE_HINT}"
            )
        if shapes != first:
            return DataError(
                f"Samples do not form a batch: {name(indices[0])} has the shape {_readable(first)}, "
                f"{name(index)} has {_readable(shapes)}. Resize or pad them to one shape. {_COLLATE_HINT}"
            )
    return None


def loader_error(loader: Any) -> DataError | None:
    """Return the error for the first samples of a DataLoader's dataset that do not form a batch, or None."""
    if not isinstance(loader, DataLoader) or loader.collate_fn is not default_collate:
        return None
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        return None
    numbers = range(min(len(dataset), _MAX_EXPLAINED))
    try:
        with preserved():
            items = [dataset[number] for number in numbers]
            return shape_error(items, numbers, "sample {}".format) if items else None
    except DataError as error:
        return error
    except Exception:  # the user's own error, which the loader has raised as well
        return None


def shapes_of(item: Any) -> Any:
    """Return `item` with tensors and arrays replaced by their shapes and raw items by their kind."""
    if (kind := kind_of(item)) is not None:
        return kind  # raw items may have any size, because the preprocessing makes them equal
    if hasattr(item, "shape"):
        return tuple(item.shape)
    if hasattr(item, "keys"):
        return {key: shapes_of(item[key]) for key in item.keys()}  # noqa: SIM118
    if isinstance(item, (list, tuple)):
        return [shapes_of(value) for value in item]
    return ()


def _form(shapes: list[Any]) -> str:
    if len(shapes) < 2:
        return "missing"
    label = shapes[1]
    return "a number" if label == () else "a name" if label == TEXT else f"of shape {label}"


def _readable(shapes: Any) -> str:
    return str(shapes[0] if isinstance(shapes, list) and shapes else shapes)


def _native(item: Any) -> Any:
    """Return an item with its arrays in the machine's byte order, which torch needs.

    Raises:
        DataError: If values of an array are masked.
    """
    if isinstance(item, np.ma.MaskedArray) and np.ma.is_masked(item):
        raise DataError("An array of a sample has masked values. Expected every value. Fill them: array.filled(0).")
    if isinstance(item, np.ndarray):
        return item if item.dtype.isnative else item.astype(item.dtype.newbyteorder("="))
    if type(item) in (tuple, list):
        return type(item)(map(_native, item))
    return {key: _array(_native(value)) for key, value in item.items()} if type(item) is dict else item


def _array(value: Any) -> Any:
    """Return a list of numbers, of any depth, as a tensor. torch would collate it to one tensor per position."""
    leaf = value
    while type(leaf) is list and leaf:
        leaf = leaf[0]
    if leaf is value or not isinstance(leaf, (int, float)):
        return value
    try:
        return torch.tensor(value)
    except (TypeError, ValueError):  # of unequal lengths
        return value


def _shared(batch: Batch) -> Batch:
    """Move the batch of a worker process into shared memory. torch would do so in a thread, whose errors are lost."""
    if get_worker_info() is not None:
        for tensor in tensors_of(batch):
            if tensor.layout == torch.strided:
                tensor.share_memory_()
    return batch


def _unchanged(batch: Batch) -> Batch:
    return batch


@dataclass
class StreamCollate:
    """The `collate_fn` of a stream: prepares items that have no index, and collates them."""

    samples: Samples

    def __call__(self, items: list[Any]) -> Batch | Failure:
        try:
            name = "item {} of the batch".format
            prepared = [self.samples.prepare(item, name(i)) for i, item in enumerate(items)]
            return self.samples.collate(prepared, range(len(items)), name)
        except DataError as error:
            return Failure(str(error))
