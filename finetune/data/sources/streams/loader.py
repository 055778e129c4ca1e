"""`Loader`: a DataLoader from the user, with its own batches, order and workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from finetune.data.batch import num_samples_of, target_of
from finetune.data.randomness import generators_of_loader_preserved, preserved, reseed, seeded
from finetune.data.sources.base import Request, type_name
from finetune.data.sources.dataset_labels import class_names
from finetune.data.sources.labels import Classes, batch_targets, check_numbering, target_tensor
from finetune.data.sources.streams.division import (
    can_split,
    check_same,
    digest_of,
    is_divided,
    own_seed,
    replaced,
    say_read_whole,
    split_for,
    undivided,
    unordered,
    with_shards_split,
)
from finetune.data.sources.streams.iterated import Iterated, length_of, set_epoch_of
from finetune.data.sources.streams.stream import shuffles
from finetune.distributed.world import World
from finetune.errors import DataError

log = logging.getLogger("finetune")


class Loader(Iterated):
    """A DataLoader from the user, with its own batches, order and workers.

    Args:
        loader: The DataLoader.
        classes: Class names by index, or None.
        seed: Seed of the random draws.
        epoch: Epoch of the first pass.
        divided: Whether each process reads a part of its own.
    """

    batched = True

    def __init__(
        self,
        loader: DataLoader[Any],
        classes: Classes | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        divided: bool = False,
    ) -> None:
        super().__init__(loader, classes, seed, epoch)
        self.batch_size = loader.batch_size
        self.divided = divided
        self._workers_compared = False

    def for_process(self, world: World, *, ordered: bool = False) -> Loader | LoaderPart:
        """Return a process's part of a loader, whose other batches are not loaded if possible."""
        own, loader = self._compared_in(world), self.iterable
        if self.divided:
            return own
        if isinstance(loader.dataset, IterableDataset):
            if can_split(loader.dataset) and not ordered:
                return own._split(replaced(loader, dataset=split_for(world, loader.dataset)), world)
        elif type(loader).__iter__ is DataLoader.__iter__ and length_of(loader) is not None:
            return LoaderPart(self, world)
        say_read_whole(loader, world)
        return own

    def order(self, epoch: int) -> list[Any]:
        """Return the indices of each batch of a pass over a map-style dataset, as a pass over all of it draws them."""
        loader = self.iterable
        set_epoch_of(self._shuffled, epoch)
        with seeded(self.seed, "loader", epoch):
            torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # torch seeds the workers first
            if not loader.num_workers:
                reseed(self.seed, "loader", epoch, 0)
            return [*islice(index_sampler(loader), length_of(loader))]

    @property
    def num_samples(self) -> int | None:
        loader = self.iterable
        fixed = loader.batch_size is not None and not loader.drop_last
        return length_of(loader.sampler) if fixed else None

    def num_batches(self, batch_size: int) -> int | None:
        return length_of(self.iterable)

    def batches(
        self,
        batch_size: int,
        *,
        workers: int,
        collate_fn: Callable[[list[Any]], Any],
        generator: torch.Generator,
    ) -> Iterable[Any]:
        streamed = isinstance(self.iterable.dataset, IterableDataset)
        return self._counted() if streamed else self._pass(length_of(self.iterable))

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
        length = None if loader.batch_size is None else length_of(loader.dataset)  # without, it may count batches
        several = loader.num_workers > 1
        for batch in self._compared_by_worker(self._pass(None if several else length_of(loader))):
            samples += 0 if length is None else num_samples_of(batch)
            if several and length is not None and samples > length:
                raise _repeating(loader.num_workers, f"gave more than the {length} samples of its iterable dataset")
            yield batch
        if length is not None and samples and samples != length and not loader.drop_last:
            self._say_length("samples", length, samples)

    def _compared_by_worker(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches, of which the first comes from the first worker, the second from the second, and so on.

        Raises:
            DataError: If all workers begin with the same samples.
        """
        workers = self.iterable.num_workers
        if workers > 1 and not self._workers_compared and getattr(self.iterable, "in_order", True):
            self._workers_compared = True
            firsts = list(islice(batches, workers))
            if len(firsts) == workers and len({digest_of([batch]) for batch in firsts}) == 1:
                raise _repeating(workers, "all begin with the same samples of its iterable dataset")
            yield from firsts
        yield from batches

    @property
    def _shuffled(self) -> Any:
        return self.iterable.sampler


def open_loader(loader: DataLoader[Any], request: Request) -> Loader:
    """Open a DataLoader. Its batches are unchanged, including their class indices.

    Raises:
        DataError: If a class index refers to another class than in the training data; if outputs are asked for, not
            labels, and the loader does not keep the order of its dataset or is divided by rank; or if samplers of an
            unknown kind divide it.
    """
    world, own = request.world, class_names(loader.dataset)
    loader = undivided(loader, world)
    if (dataset := with_shards_split(loader.dataset, world, ordered=not request.labeled)) is not loader.dataset:
        loader = replaced(loader, dataset=dataset)
    divided = is_divided(loader.dataset, world)
    check_numbering(own, request.meaning, "The DataLoader's dataset")
    if not request.labeled and (problem := _disorder(loader)) is not None:
        raise DataError(
            f"Predictions are one row per sample, in the order of the data, but the DataLoader {problem}. Pass its "
            f"dataset, or a DataLoader without shuffle, drop_last and sampler."
        )
    if not request.labeled and divided:
        raise unordered("DataLoader's dataset")
    seed = own_seed(request.seed, world) if divided else request.seed
    return Loader(loader, request.classes or own, seed=seed, epoch=request.epoch, divided=divided)


def _repeating(workers: int, problem: str) -> DataError:
    """Return the error for workers that each read all of an iterable dataset."""
    return DataError(
        f"The {workers} workers of the DataLoader {problem}. Expected each worker to read another part, by "
        f"torch.utils.data.get_worker_info(). Divide the samples, or use num_workers=0."
    )


def _disorder(loader: DataLoader[Any]) -> str | None:
    """Return the reason that a loader does not give each sample once and in order, or None."""
    if loader.num_workers > 1 and not getattr(loader, "in_order", True):
        return "has in_order=False"
    if isinstance(loader.dataset, IterableDataset):
        if loader.num_workers > 1:
            return f"reads an iterable dataset in {loader.num_workers} workers, which take turns; use one"
        if shuffles(loader.dataset):
            return "reads a stream that shuffles"
        return "has drop_last=True" if loader.drop_last else None
    sampler = index_sampler(loader)
    if any(iter(each) is each for each in (loader.sampler, sampler)):
        return "has a sampler that can be read only once"
    length = length_of(loader.dataset)
    with preserved(), generators_of_loader_preserved(loader):
        expected = count() if length is None else iter(range(length))
        for index in _flat(sampler):
            if index != next(expected, None):
                return f"gives sample {index} out of order; it shuffles or has a sampler"
    left = 0 if length is None else len(list(expected))
    return f"leaves out {left} of {length} samples" if left else None


class LoaderPart(Iterated):
    """Every n-th batch of a DataLoader over a map-style dataset. The batches of other processes are not loaded.

    Args:
        whole: The DataLoader.
        world: The processes.
    """

    batched = True

    def __init__(self, whole: Loader, world: World) -> None:
        self._indices: list[Any] = []
        loader = whole.iterable
        sampler = "sampler" if loader.batch_sampler is None else "batch_sampler"
        part = replaced(loader, generator=None, **{sampler: self._indices})
        super().__init__(part, whole.classes, own_seed(whole.seed, world), whole.epoch)
        self._all, self._world = whole, world

    def batches(
        self,
        batch_size: int,
        *,
        workers: int,
        collate_fn: Callable[[list[Any]], Any],
        generator: torch.Generator,
    ) -> Iterator[Any]:
        """Yield the batches of a pass, with None for those of other processes."""
        order, (rank, size) = self._all.order(self.epoch), (self._world.rank, self._world.size)
        targets = list(map(target_of, self._all.first(1)))  # its inputs may be augmented differently
        check_same(type(self.iterable.dataset).__name__, [order, targets], self._world)
        self._all.release()
        self._indices[:] = order[rank::size]
        own = self._pass(None)
        for number in range(len(order)):
            yield next(own) if number % size == rank else None


def index_sampler(loader: DataLoader[Any]) -> Any:
    """Return the sampler of a DataLoader that gives the indices of each batch, or of each sample without batches."""
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _flat(sampler: Iterable[Any]) -> Iterator[Any]:
    """Yield the indices of a sampler of indices, or of batches of indices."""
    for indices in sampler:
        yield from indices if isinstance(indices, (list, tuple, Tensor)) and not _is_number(indices) else [indices]


def _is_number(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dim() == 0
