"""Data without sample indices: iterable datasets and DataLoaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from finetune.data.batch import target_of
from finetune.data.sources.base import Request, Source, type_name
from finetune.data.sources.dataset_labels import class_names
from finetune.data.sources.labels import Classes, check_numbering, stacked_targets, target_tensor


class Stream(Source):
    """An iterable dataset, which has its own order and is batched here.

    Args:
        dataset: The dataset, whose items are samples.
        classes: Class names by index, or None.
    """

    indexed = False

    def __init__(self, dataset: IterableDataset[Any], classes: Classes | None = None) -> None:
        self.dataset = dataset
        self.classes = classes
        self.collate_fn = getattr(dataset, "collate_fn", None)

    @property
    def num_samples(self) -> int | None:
        return _length(self.dataset)

    def batches(
        self,
        batch_size: int,
        *,
        workers: int,
        collate_fn: Callable[[list[Any]], Any],
        generator: torch.Generator,
    ) -> Iterable[Any]:
        return DataLoader(
            self.dataset,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate_fn,
            generator=generator,
        )

    def set_epoch(self, epoch: int) -> None:
        _set_epoch(self.dataset, epoch)

    def first_targets(self, count: int) -> Tensor | None:
        return stacked_targets([target_of(item) for item in islice(self.dataset, count)])

    def describe(self) -> Iterator[Any]:
        yield type_name(self.dataset)
        yield self.num_samples


class Loader(Source):
    """A DataLoader from the user, with its own batches, order and workers.

    Args:
        loader: The DataLoader.
        classes: Class names by index, or None.
    """

    indexed = False
    batched = True

    def __init__(self, loader: DataLoader[Any], classes: Classes | None = None) -> None:
        self.loader = loader
        self.classes = classes

    @property
    def num_samples(self) -> int | None:
        fixed = self.loader.batch_size is not None and not self.loader.drop_last
        return _length(self.loader.sampler) if fixed else None

    def num_batches(self, batch_size: int) -> int | None:
        return _length(self.loader)

    def batches(
        self,
        batch_size: int,
        *,
        workers: int,
        collate_fn: Callable[[list[Any]], Any],
        generator: torch.Generator,
    ) -> Iterable[Any]:
        return self.loader

    def set_epoch(self, epoch: int) -> None:
        _set_epoch(self.loader.sampler, epoch)

    def first_targets(self, count: int) -> Tensor | None:
        return target_tensor(target_of(next(iter(self.loader), None)))

    def describe(self) -> Iterator[Any]:
        yield type_name(self.loader.dataset)
        yield self.num_samples


def open_stream(dataset: IterableDataset[Any], request: Request) -> Stream:
    """Open an iterable dataset. Its items are unchanged, including their class indices.

    Raises:
        DataError: If a class index refers to another class than in the training data.
    """
    own = class_names(dataset)
    check_numbering(own, request.meaning, "The iterable dataset")
    return Stream(dataset, request.classes or own)


def open_loader(loader: DataLoader[Any], request: Request) -> Loader:
    """Open a DataLoader. Its batches are unchanged, including their class indices.

    Raises:
        DataError: If a class index refers to another class than in the training data.
    """
    own = class_names(loader.dataset)
    check_numbering(own, request.meaning, "The DataLoader's dataset")
    return Loader(loader, request.classes or own)


def _length(sized: Any) -> int | None:
    """Return `len(sized)`, or None for an iterable dataset, or a loader of one, without a length."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def _set_epoch(shuffled: Any, epoch: int) -> None:
    """Set the epoch of a distributed sampler or a Hugging Face stream, as their own training loops do."""
    if callable(getattr(shuffled, "set_epoch", None)):
        shuffled.set_epoch(epoch)
