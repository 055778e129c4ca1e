"""Data without sample indices: iterable datasets and DataLoaders."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from finetune.data.batch import num_samples_of, target_of
from finetune.data.randomness import generators_of_loader_preserved, preserved, reseed, seeded
from finetune.data.sources.base import Request, Source, type_name
from finetune.data.sources.dataset_labels import class_names
from finetune.data.sources.datasets import ItemForm, without_tensors
from finetune.data.sources.labels import Classes, batch_targets, check_numbering, stacked_targets, target_tensor
from finetune.errors import DataError
from finetune.signals.stops import heed_parent_only
from finetune.threads.cached import cached_property

log = logging.getLogger("finetune")


class Reading:
    """One pass over an iterable, whose first values can be looked at before it begins.

    The first values come from the iterator of the pass itself, because a second `iter` of a file reader, for example,
    continues where the first one stopped. Each value has a seed of its own, so a look at it changes no later value.

    Args:
        iterable: The iterable.
        key: Key of the random draws.
        epoch: Epoch of the pass, the last part of the key.
    """

    def __init__(self, iterable: Iterable[Any], *key: int | str, epoch: int) -> None:
        self.epoch = epoch
        self.begun = False
        self._key = (*key, epoch)
        self._first: list[Any] = []
        with seeded(*self._key):
            self._rest = _begun(iterable)

    def first(self, number: int) -> list[Any]:
        """Return the first values. Once the pass has begun, these are the ones already read."""
        missing = number - len(self._first)
        if missing > 0 and not self.begun:
            with preserved():
                self._first.extend(islice(self._drawn(len(self._first)), missing))
        return self._first[:number]

    def __iter__(self) -> Iterator[Any]:
        """Begin the pass. Call it once, inside `preserved`."""
        self.begun = True
        yield from self._first
        yield from self._drawn(len(self._first))

    def _drawn(self, start: int) -> Iterator[Any]:
        for position in count(start):
            reseed(*self._key, position)
            try:
                value = next(self._rest)
            except StopIteration:
                return
            yield value


def _begun(iterable: Any) -> Iterator[Any]:
    """Return an iterator, whose worker processes leave signals to this one if it is that of a DataLoader."""
    if not isinstance(iterable, DataLoader) or not iterable.num_workers:
        return iter(iterable)
    own = iterable.worker_init_fn
    iterable.worker_init_fn = partial(heed_parent_only, then=own)
    try:
        return iter(iterable)
    finally:
        iterable.worker_init_fn = own


class Iterated(Source):
    """Data that is read from its start, such as an iterable dataset.

    Args:
        iterable: What is read in each pass.
        classes: Class names by index, or None.
        seed: Seed of the random draws.
        epoch: Epoch of the first pass.
    """

    indexed = False

    def __init__(self, iterable: Any, classes: Classes | None, seed: int, epoch: int) -> None:
        self.iterable = iterable
        self.classes = classes
        self.seed = seed
        self.epoch = epoch
        self._looked: Reading | None = None
        self._compared = self._length_said = False

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def first(self, number: int) -> list[Any]:
        """Return the first values of the next pass, without using them up."""
        if self._looked is None:
            self._looked = self._opened()
        return self._looked.first(number)

    def _pass(self, limit: int | None) -> Iterator[Any]:
        """Yield the values of a pass, at most `limit`, the stated length. Warn once if the true length differs."""
        looked, begun = self._looked, False
        if looked is not None and not looked.begun and looked.epoch == self.epoch:
            reading, begun = looked, True
        values = iter(reading if begun else self._opened())
        number = 0
        for value in islice(values, limit):
            number += 1
            yield value
        if limit is not None and not self._compared:
            self._compared = True
            with warnings.catch_warnings():  # torch's own words for the same
                warnings.simplefilter("ignore", UserWarning)
                more = next(values, None) is not None
            self._compare(number, limit, more=more)

    def _opened(self) -> Reading:
        _set_epoch(self._shuffled, self.epoch)
        return Reading(self.iterable, self.seed, "loader", epoch=self.epoch)

    def _compare(self, number: int, length: int, *, more: bool) -> None:
        if not more and number in (0, length):
            return
        self._say_length("batches" if self.batched else "samples", length, number, more=more)

    def _say_length(self, unit: str, length: int, number: int, *, more: bool = False) -> None:
        if self._length_said:
            return
        self._length_said = True
        gave = "gives more; a pass ends there" if more else f"gave {number}"
        log.warning(
            "%s has the length of %d %s, but %s. Correct __len__, which the schedule of learning rates follows.",
            type(self.iterable).__name__,
            length,
            unit,
            gave,
        )

    @property
    def _shuffled(self) -> Any:
        """The object whose `set_epoch` decides the order."""
        return self.iterable


class Stream(Iterated):
    """An iterable dataset, which has its own order and is batched here.

    Args:
        dataset: The dataset, whose items are samples.
        classes: Class names by index, or None.
        takes: Kind of raw item that the preprocessing takes.
        seed: Seed of the random draws.
        epoch: Epoch of the first pass.
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        classes: Classes | None = None,
        *,
        takes: str | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        super().__init__(dataset, classes, seed, epoch)
        self.takes = takes
        self.collate_fn = getattr(dataset, "collate_fn", None)

    @cached_property
    def form(self) -> ItemForm:
        """Form of the items, by the first one."""
        return ItemForm.of(next(iter(self.first(1)), None), self.takes)

    @cached_property
    def kind(self) -> str | None:  # type: ignore[override]
        """Kind of raw item."""
        return self.form.kind

    @property
    def num_samples(self) -> int | None:
        return _length(self.iterable)

    def batches(
        self,
        batch_size: int,
        *,
        workers: int,
        collate_fn: Callable[[list[Any]], Any],
        generator: torch.Generator,
    ) -> Iterable[Any]:
        if workers == 0:
            return self._batches(batch_size, collate_fn)
        return DataLoader(
            self.iterable,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate_fn,
            generator=generator,
            worker_init_fn=heed_parent_only,
        )

    def look(self, number: int, collate_fn: Callable[[list[Any]], Any]) -> Any:
        items = self.first(number if self.num_samples is None else min(number, self.num_samples))
        return collate_fn(list(map(self.form, items))) if items else None

    def first_targets(self, number: int) -> Tensor | None:
        return stacked_targets([target_of(self.form(item)) for item in self.first(number)])

    def describe(self) -> Iterator[Any]:
        yield type_name(self.iterable)
        yield self.num_samples

    def identify(self) -> Iterator[Any]:
        return islice(self.describe(), 1)  # a length may be known only after the first pass

    def _batches(self, batch_size: int, collate_fn: Callable[[list[Any]], Any]) -> Iterator[Any]:
        items = map(self.form, self._pass(self.num_samples))
        for step in count():
            batch = list(islice(items, batch_size))
            if not batch:
                return
            reseed(self.seed, "collate", self.epoch, step)  # whether or not the items were just drawn
            yield collate_fn(batch)


class Loader(Iterated):
    """A DataLoader from the user, with its own batches, order and workers.

    Args:
        loader: The DataLoader.
        classes: Class names by index, or None.
        seed: Seed of the random draws.
        epoch: Epoch of the first pass.
    """

    batched = True

    def __init__(
        self, loader: DataLoader[Any], classes: Classes | None = None, *, seed: int = 0, epoch: int = 0
    ) -> None:
        super().__init__(loader, classes, seed, epoch)
        self.batch_size = loader.batch_size

    @property
    def num_samples(self) -> int | None:
        loader = self.iterable
        fixed = loader.batch_size is not None and not loader.drop_last
        return _length(loader.sampler) if fixed else None

    def num_batches(self, batch_size: int) -> int | None:
        return _length(self.iterable)

    def batches(
        self,
        batch_size: int,
        *,
        workers: int,
        collate_fn: Callable[[list[Any]], Any],
        generator: torch.Generator,
    ) -> Iterable[Any]:
        streamed = isinstance(self.iterable.dataset, IterableDataset)
        return self._counted() if streamed else self._pass(_length(self.iterable))

    def look(self, number: int, collate_fn: Callable[[list[Any]], Any]) -> Any:
        return next(iter(self.first(1)), None)

    def first_targets(self, number: int) -> Tensor | None:
        batch = self.look(number, list)
        with suppress(DataError):  # of names, which a custom step may know
            return target_tensor(batch_targets(target_of(batch), num_samples_of(batch), self.classes, "batch 1"))
        return None

    def describe(self) -> Iterator[Any]:
        yield type_name(self.iterable.dataset)
        yield self.num_samples

    def identify(self) -> Iterator[Any]:
        yield from super().identify()
        if isinstance(self.iterable.dataset, TensorDataset):
            yield from self.iterable.dataset.tensors

    def _counted(self) -> Iterator[Any]:
        """Yield the batches of an iterable dataset, of which several workers should each read another part."""
        loader, samples = self.iterable, 0
        length = None if loader.batch_size is None else _length(loader.dataset)  # without, it may count batches
        divided = loader.num_workers > 1
        for batch in self._pass(None if divided else _length(loader)):
            samples += 0 if length is None else num_samples_of(batch)
            if divided and length is not None and samples > length:
                raise DataError(
                    f"The {loader.num_workers} workers of the DataLoader gave more than the {length} samples of its "
                    f"iterable dataset. Expected each worker to read another part, by "
                    f"torch.utils.data.get_worker_info(). Divide the samples, or use num_workers=0."
                )
            yield batch
        if length is not None and samples and samples != length and not loader.drop_last:
            self._say_length("samples", length, samples)

    @property
    def _shuffled(self) -> Any:
        return self.iterable.sampler


def open_stream(dataset: IterableDataset[Any], request: Request) -> Stream:
    """Open an iterable dataset. Its items keep their class indices.

    Raises:
        DataError: If a class index refers to another class than in the training data, or the stream shuffles and
            outputs are asked for, not labels.
    """
    own = class_names(dataset)
    check_numbering(own, request.meaning, "The iterable dataset")
    if not request.labeled and _shuffles(dataset):
        raise DataError(
            "Predictions are one row per sample, in the order of the data, but the stream shuffles. Pass the stream "
            "without shuffle(...)."
        )
    return Stream(
        without_tensors(dataset),
        request.classes or own,
        takes=request.takes,
        seed=request.seed,
        epoch=request.epoch,
    )


def open_loader(loader: DataLoader[Any], request: Request) -> Loader:
    """Open a DataLoader. Its batches are unchanged, including their class indices.

    Raises:
        DataError: If a class index refers to another class than in the training data, or the loader does not keep
            the order of its dataset and outputs are asked for, not labels.
    """
    own = class_names(loader.dataset)
    check_numbering(own, request.meaning, "The DataLoader's dataset")
    if not request.labeled and (problem := _disorder(loader)) is not None:
        raise DataError(
            f"Predictions are one row per sample, in the order of the data, but the DataLoader {problem}. Pass its "
            f"dataset, or a DataLoader without shuffle, drop_last and sampler."
        )
    return Loader(loader, request.classes or own, seed=request.seed, epoch=request.epoch)


def _disorder(loader: DataLoader[Any]) -> str | None:
    """Return the reason that a loader does not give each sample once and in order, or None."""
    if loader.num_workers > 1 and not getattr(loader, "in_order", True):
        return "has in_order=False"
    if isinstance(loader.dataset, IterableDataset):
        if loader.num_workers > 1:
            return f"reads an iterable dataset in {loader.num_workers} workers, which take turns; use one"
        if _shuffles(loader.dataset):
            return "reads a stream that shuffles"
        return "has drop_last=True" if loader.drop_last else None
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if any(iter(each) is each for each in (loader.sampler, sampler)):
        return "has a sampler that can be read only once"
    length = _length(loader.dataset)
    with preserved(), generators_of_loader_preserved(loader):
        expected = count() if length is None else iter(range(length))
        for index in _flat(sampler):
            if index != next(expected, None):
                return f"gives sample {index} out of order; it shuffles or has a sampler"
    left = 0 if length is None else len(list(expected))
    return f"leaves out {left} of {length} samples" if left else None


def _shuffles(stream: Any) -> bool:
    """Return whether a stream shuffles, as those of Hugging Face and the data pipes of torch may do."""
    while stream is not None:
        if "shuffl" in type(stream).__name__.lower():
            return True
        inner = (getattr(stream, name, None) for name in ("_ex_iterable", "ex_iterable", "source_datapipe", "datapipe"))
        stream = next((part for part in inner if part is not None), None)
    return False


def _flat(sampler: Iterable[Any]) -> Iterator[Any]:
    """Yield the indices of a sampler of indices, or of batches of indices."""
    for indices in sampler:
        yield from indices if isinstance(indices, (list, tuple, Tensor)) and not _is_number(indices) else [indices]


def _is_number(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dim() == 0


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
