"""`Stream`: an iterable dataset, which has its own order and is batched here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from finetune.data.batch import target_of
from finetune.data.randomness import reseed
from finetune.data.sources.base import Request, type_name
from finetune.data.sources.dataset_labels import class_names
from finetune.data.sources.datasets import ItemForm, without_tensors
from finetune.data.sources.labels import Classes, check_numbering, stacked_targets
from finetune.data.sources.streams.division import (
    can_split,
    is_divided,
    own_seed,
    say_read_whole,
    split_for,
    stages_of,
    unordered,
    with_shards_split,
)
from finetune.data.sources.streams.iterated import Iterated, length_of
from finetune.distributed.world import ALONE, World
from finetune.errors import DataError
from finetune.threads.cached import cached_property


class Stream(Iterated):
    """An iterable dataset, which has its own order and is batched here.

    Args:
        dataset: The dataset, whose items are samples.
        classes: Class names by index, or None.
        takes: Kind of raw item that the preprocessing takes.
        seed: Seed of the random draws.
        epoch: Epoch of the first pass.
        divided: Whether each process reads a part of its own.
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        classes: Classes | None = None,
        *,
        takes: str | None = None,
        seed: int = 0,
        epoch: int = 0,
        divided: bool = False,
    ) -> None:
        super().__init__(dataset, classes, seed, epoch)
        self.takes = takes
        self.divided = divided
        self._turn = ALONE  # the process whose batches are wanted
        self.collate_fn = getattr(dataset, "collate_fn", None)

    @cached_property
    def form(self) -> ItemForm:
        """Form of the items, by the first one."""
        return ItemForm.of(next(iter(self.first(1)), None), self.takes)

    @cached_property
    def kind(self) -> str | None:  # type: ignore[override]
        """Kind of raw item."""
        return self.form.kind

    def for_process(self, world: World, *, ordered: bool = False) -> Stream:
        """Return a process's part of a stream that can be split, or the stream without the batches of the others."""
        own = self._compared_in(world)
        if self.divided:
            return own
        if can_split(self.iterable) and not ordered:
            return own._split(split_for(world, self.iterable), world)
        say_read_whole(self.iterable, world)
        own._turn = world
        return own

    @property
    def num_samples(self) -> int | None:
        return length_of(self.iterable)

    def batches(
        self,
        batch_size: int,
        *,
        workers: int,
        collate_fn: Callable[[list[Any]], Any],
        generator: torch.Generator,
    ) -> Iterator[Any]:
        items = self._pass(self.num_samples)
        for step in count():
            batch = list(islice(items, batch_size))
            if not batch:
                return
            if step % self._turn.size != self._turn.rank:  # not prepared, because another process takes it
                yield None
                continue
            reseed(self.seed, "collate", self.epoch, step)  # whether or not the items were just drawn
            yield collate_fn(list(map(self.form, batch)))

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


def open_stream(dataset: IterableDataset[Any], request: Request) -> Stream:
    """Open an iterable dataset. Its items keep their class indices.

    Raises:
        DataError: If a class index refers to another class than in the training data; or if outputs are asked for, not
            labels, and the stream shuffles or is divided by rank.
    """
    world, own = request.world, class_names(dataset)
    dataset = with_shards_split(dataset, world, ordered=not request.labeled)
    divided = is_divided(dataset, world)
    check_numbering(own, request.meaning, "The iterable dataset")
    if not request.labeled and shuffles(dataset):
        raise DataError(
            "Predictions are one row per sample, in the order of the data, but the stream shuffles. Pass the stream "
            "without shuffle(...)."
        )
    if not request.labeled and divided:
        raise unordered("stream")
    return Stream(
        without_tensors(dataset),
        request.classes or own,
        takes=request.takes,
        seed=own_seed(request.seed, world) if divided else request.seed,
        epoch=request.epoch,
        divided=divided,
    )


def shuffles(stream: Any) -> bool:
    """Return whether a stream shuffles, as those of Hugging Face, torch's data pipes and `WebDataset` may do."""
    if any(map(_shuffles_by, stages_of(stream))):
        return True
    while stream is not None:
        if "shuffl" in type(stream).__name__.lower():
            return True
        inner = (getattr(stream, name, None) for name in ("_ex_iterable", "ex_iterable", "source_datapipe", "datapipe"))
        stream = next((part for part in inner if part is not None), None)
    return False


def _shuffles_by(stage: Any) -> bool:
    """Return whether a stage of a `WebDataset` shuffles. `shardshuffle=False` is a stage with an empty buffer."""
    known = getattr(stage, "__dict__", {})
    buffer = next(iter(known.get("args") or [known.get("bufsize", 1)]))
    return "shuffl" in repr(stage).lower() and bool(buffer)
