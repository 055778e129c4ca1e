"""`Observed`: a source whose samples carry facts of their raw items, so that one read serves model and check."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from finetune.data.batch import split_batch, with_target
from finetune.data.preprocessing.base import IMAGE, InputPreprocessing
from finetune.data.sources.base import Indices, Source
from finetune.data_check.samples.facts import Facts, facts_of
from finetune.errors import DataError, reason
from finetune.interpret.pictures import as_picture

_KEY = "_facts"  # of the facts in a dict
_TRIED = 100  # samples that are tried for one that stands in for the unreadable


class Observed(Source):
    """A source whose samples have their facts as the last part, or in a dict under a key of their own.

    A sample that cannot be read is replaced by one that can, and its fact `readable` is False.

    Args:
        source: An indexed source.
        preprocessing: Preprocessing that decides whether a raw item can be used, or None.

    Example:
        >>> from finetune.data.sources.open_source import open_source
        >>> observed = Observed(open_source((torch.zeros(4, 3), torch.arange(4) % 2)))
        >>> inputs, target, facts = observed[1]
        >>> int(target), bool(facts["readable"])
        (1, True)
    """

    def __init__(self, source: Source, preprocessing: InputPreprocessing | None = None) -> None:
        self.source = source
        self.classes, self.kind, self.targets = source.classes, source.kind, source.targets
        self.stochastic, self.vectorized = source.stochastic, source.vectorized
        self._preprocessing = preprocessing
        self.collate_fn = None if source.collate_fn is None else self._collated

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        try:
            return self._observed(index, read(self.source, index, self._preprocessing))
        except DataError:
            return self._observed(index, self._stand_in, readable=False)

    def _observed(self, index: int, item: Any, *, readable: bool = True) -> Any:
        inputs, target = split_batch(item) if isinstance(item, (tuple, list, dict)) else (item, None)
        facts = facts_of(inputs, pictures=self.shows_pictures) | {"readable": torch.tensor(readable)}
        if not readable and self.targets is not None:
            item = with_target(item, self.targets[index])
        return _joined(item if target is not None else (inputs, 0), facts)

    def gather(self, indices: Tensor) -> Any:
        batch = self.source.gather(indices)
        rows = (self.source[index] for index in indices.tolist())
        facts = [facts_of(split_batch(row)[0], pictures=self.shows_pictures) for row in rows]
        return _joined(batch, default_collate(facts) | {"readable": torch.ones(len(indices), dtype=torch.bool)})

    def name(self, index: int) -> str:
        return self.source.name(index)

    def subset(self, indices: Indices) -> Observed:
        return Observed(self.source.subset(indices), self._preprocessing)

    @cached_property
    def shows_pictures(self) -> bool:
        """Whether the samples are pictures, as files or as arrays [C, H, W] of one or three channels."""
        return self.kind == IMAGE or (self.kind is None and as_picture(split_batch(self._stand_in)[0]) is not None)

    @cached_property
    def _stand_in(self) -> Any:
        """The first item that can be read.

        Raises:
            DataError: If there is none among the first.
        """
        problem: DataError | None = None
        for index in range(min(_TRIED, len(self))):
            try:
                return read(self.source, index, self._preprocessing)
            except DataError as error:
                problem = problem or error
        assert problem is not None
        raise DataError(
            f"None of the first {min(_TRIED, len(self))} samples can be read. The first: {problem}"
        ) from problem

    def _collated(self, items: list[Any]) -> Any:
        """Collate by the function of the source, and the facts beside it."""
        assert self.source.collate_fn is not None
        pairs = [split_facts(item) for item in items]
        return _joined(
            self.source.collate_fn([item for item, _ in pairs]), default_collate([facts for _, facts in pairs])
        )


def read(source: Source, index: int, preprocessing: InputPreprocessing | None = None) -> Any:
    """Return an item of a source.

    Raises:
        DataError: If it cannot be read, or the preprocessing cannot use it.
    """
    try:
        item = source[index]
    except DataError:
        raise
    except Exception as error:  # a dataset of the user may raise anything
        raise DataError(f"Reading it raised {reason(error)}.") from error
    if preprocessing is not None and preprocessing.kind == source.kind:
        preprocessing.check(split_batch(item)[0] if isinstance(item, (tuple, list, dict)) else item)
    return item


def problem(source: Source, index: int, preprocessing: InputPreprocessing | None = None) -> str | None:
    """Return the reason that a sample cannot be read, or None."""
    try:
        read(source, index, preprocessing)
    except DataError as error:
        return str(error)
    return None


def facts_of_batch(batch: Any) -> Facts:
    """Return the facts in a batch of an `Observed` source, each [N, ...]."""
    return split_facts(batch)[1]


def without_facts(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a step that takes batches of an `Observed` source, from one that takes those of its source."""
    return lambda batch: step(split_facts(batch)[0])


def split_facts(batch: Any) -> tuple[Any, Facts]:
    """Split a batch, or a sample, of an `Observed` source into that of its source and the facts."""
    if isinstance(batch, dict):
        return {name: value for name, value in batch.items() if name != _KEY}, batch[_KEY]
    return tuple(batch[:-1]), batch[-1]


def _joined(batch: Any, facts: Facts) -> Any:
    return {**batch, _KEY: facts} if isinstance(batch, dict) else (*batch, facts)
