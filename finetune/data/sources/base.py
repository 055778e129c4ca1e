"""The protocol of data sources: the interface to data in any form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finetune.data.batch import target_of
from finetune.data.sources.labels import Classes, Meaning, stacked_targets
from finetune.distributed.world import ALONE, World

if TYPE_CHECKING:
    from finetune.data.audit import Audit

Indices = Sequence[int] | Tensor


@dataclass(frozen=True)
class Request:
    """Settings for opening data.

    Attributes:
        meaning: Meaning of labels: class names, class numbers, or the targets themselves.
        labeled: Whether labels are needed.
        takes: Kind of raw item that the preprocessing takes, or None.
        double: Whether float64 arrays stay as they are, because the model computes in float64.
        seed: Seed of the random draws of a stream.
        epoch: Epoch of the first pass over a stream.
        world: Processes that read the data together.
    """

    meaning: Meaning = field(default_factory=Meaning)
    labeled: bool = True
    takes: str | None = None
    double: bool = False
    seed: int = 0
    epoch: int = 0
    world: World = ALONE

    @property
    def classes(self) -> Classes | None:
        """Classes of the training data, which targets index. None derives them from the data."""
        return self.meaning.classes


class Source(Dataset[Any]):
    """Data in one particular form, such as a folder of images or a pair of arrays.

    `open_source` returns one for every form that the package recognizes. To add a form, subclass `Source` and pass an
    instance to `fit`, `evaluate` or `predict`. An indexed source implements `__len__` and `__getitem__`; a stream
    sets `indexed` to False and implements `batches`. Every other member has a default that holds for any data.
    Override members to enable more features, for example `keys` to cache features on disk.

    Attributes:
        classes: Class names by index, or None if there are none or they are unknown.
        targets: All targets, int64 [N] class indices or float [N] or [N, K], if they are known without reading
            the inputs. None otherwise.
        sampled_targets: Targets of the samples that the audit read, if `targets` is None.
        marks: int64 [N], 0 for the samples that the data itself marks for training, 1 for validation and 2 for test,
            or None if it marks none.
        notes: Sentences for the user on how the data was read.
        kind: Kind of raw item that the preprocessing has to prepare. None if the inputs are ready for the model.
        collate_fn: Function that makes a batch of samples, or None for torch's default.
        splits: Whether `fit` holds out a fraction for validation if it gets no validation data.
        indexed: Whether samples have an index. False for a stream, which is read from its start.
        stochastic: Whether two reads of a sample may differ, for example because the source augments. Set it to
            False only if samples are constant and `targets` holds all targets, if there are any.
        vectorized: Whether `gather` returns a whole batch, so that samples need not be read one by one.
        batched: Whether a stream yields batches that are ready for the model and only moved to its device.
        divided: Whether each of several processes reads other samples of a stream, and together they read all.

    Example:
        >>> class Squares(Source):
        ...     def __len__(self):
        ...         return 10
        ...
        ...     def __getitem__(self, index):
        ...         return torch.tensor([index, index**2]), index % 2
        >>> Squares().subset([3, 5])[1]
        (tensor([ 5, 25]), 1)
    """

    classes: Classes | None = None
    targets: Tensor | None = None
    sampled_targets: Tensor | None = None
    marks: Tensor | None = None
    notes: tuple[str, ...] = ()
    kind: str | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    splits: bool = False
    indexed: bool = True
    stochastic: bool = True
    vectorized: bool = False
    batched: bool = False
    divided: bool = False

    # ------------------------------------------------------------------ indexed sources

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length because it is read as a stream.")

    def __getitem__(self, index: int) -> Any:
        """Return the pair `(input, target)`, only the input if there are no targets, or a dict of both."""
        raise TypeError(f"{type(self).__name__} has no samples by index because it is read as a stream.")

    def subset(self, indices: Indices) -> Source:
        """Return the samples at `indices`, in that order, as a source that shares the data."""
        return SubsetSource(self, indices)

    def gather(self, indices: Tensor) -> Any:
        """Return the batch of the samples at int64 [B]. Called only if `vectorized`."""
        raise NotImplementedError

    # ------------------------------------------------------------------ streams

    def batches(
        self,
        batch_size: int,
        *,
        workers: int,
        collate_fn: Callable[[list[Any]], Any],
        generator: torch.Generator,
    ) -> Iterable[Any]:
        """Return the batches of one epoch. Called only if not `indexed`.

        Args:
            batch_size: Samples per batch.
            workers: Number of worker processes.
            collate_fn: Function that makes a batch of samples.
            generator: Generator that draws the seeds of the workers.
        """
        raise NotImplementedError

    def for_process(self, world: World, *, ordered: bool = False) -> Source:
        """Return a stream as one of several processes reads it.

        The default returns the whole stream, of which each process keeps every n-th batch. A stream may yield None in
        place of the batches of the others, or be `divided`.

        Args:
            world: The processes. Each of them calls this.
            ordered: Whether the batches have to keep the order of the whole.
        """
        return self

    def set_epoch(self, epoch: int) -> None:
        """Announce the next epoch to a stream that shuffles itself."""

    def look(self, count: int, collate_fn: Callable[[list[Any]], Any]) -> Any:
        """Return a batch of the first `count` samples, or the first batch if `batched`; None if there is none.

        The default begins a pass, so a stream that does not start anew in every pass has to override it.
        """
        generator = torch.Generator().manual_seed(0)
        return next(iter(self.batches(count, workers=0, collate_fn=collate_fn, generator=generator)), None)

    # ------------------------------------------------------------------ facts

    @property
    def num_samples(self) -> int | None:
        """Number of samples per epoch, or None if it is unknown beforehand."""
        return len(self)

    def num_batches(self, batch_size: int) -> int | None:
        """Return the number of batches per epoch, or None if it is unknown beforehand."""
        samples = self.num_samples
        return None if samples is None else math.ceil(samples / batch_size)

    def name(self, index: int) -> str:
        """Return a name for a sample that the user recognizes in an error message."""
        return f"sample {index}"

    def groups(self) -> Tensor | None:
        """Return int64 [N], equal for samples that no split divides, such as those of one file, or None (default)."""
        return None

    def shared_with(self, other: Source) -> str | None:
        """Return the samples that `other` has too, in words, or None (default) if none are known."""
        return None

    def first_targets(self, count: int) -> Tensor | None:
        """Read the targets of the first `count` samples. Return None if they do not form a tensor."""
        return stacked_targets([target_of(self[index]) for index in range(min(count, len(self)))])

    def describe(self) -> Iterator[Any]:
        """Yield values that identify the inputs, so that `compare` recognizes a finished run.

        The default yields the name of the class and the number of samples.
        """
        yield type_name(self)
        yield self.num_samples

    def identify(self) -> Iterator[Any]:
        """Yield values that identify the inputs wherever they are kept, so that no run resumes with others.

        They have to be cheap, and equal for a moved or copied folder. The default yields those of `describe`.
        """
        return self.describe()

    # ------------------------------------------------------------------ checks

    def check(self, audit: Audit) -> Source:
        """Check the inputs before training and return the source without the samples to leave out.

        The default reads up to 2,000 samples. A source that overrides this overrides `subset` as well.

        Raises:
            DataError: If a sample cannot be used.
        """
        audit.read_samples(self)
        return self

    # ------------------------------------------------------------------ identity and changes, for caches

    def keys(self) -> Iterable[bytes] | None:
        """Return a key per sample that identifies it in a cache on disk, or None (default) to disable such caches.

        Equal keys must mean equal inputs across all sources. Targets do not count.
        """
        return None

    def version(self, *, values: bool) -> Any:
        """Return a value that changes when the inputs are modified in place, or None (default) if they are not.

        Args:
            values: Whether to read all values, because user code may have modified them unnoticed.
        """
        return None

    def watch(self) -> Callable[[int], bool] | None:
        """Return a function that checks whether a sample is as when first asked, or None if samples never change."""
        return None


class SubsetSource(Source):
    """The samples of another source at `indices`.

    Args:
        source: An indexed source.
        indices: int64 [M], in the order of the subset.

    Raises:
        TypeError: If the source is a stream.
    """

    def __init__(self, source: Source, indices: Indices) -> None:
        if not source.indexed:
            raise TypeError(f"{type(source).__name__} cannot be divided because it is read as a stream.")
        self.source = source
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        self.classes, self.kind, self.collate_fn = source.classes, source.kind, source.collate_fn
        self.stochastic, self.vectorized = source.stochastic, source.vectorized
        targets = source.targets
        self.targets = None if targets is None else targets[self.indices.to(targets.device)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[int(self.indices[index])]

    def subset(self, indices: Indices) -> SubsetSource:
        return SubsetSource(self.source, self.indices[torch.as_tensor(indices, dtype=torch.int64)])

    def gather(self, indices: Tensor) -> Any:
        return self.source.gather(self.indices[indices])

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def groups(self) -> Tensor | None:
        found = self.source.groups()
        return None if found is None else found[self.indices]

    def describe(self) -> Iterator[Any]:
        yield from self.source.describe()
        yield self.indices

    def identify(self) -> Iterator[Any]:
        yield from self.source.identify()
        yield self.indices

    def keys(self) -> Iterable[bytes] | None:
        found = self.source.keys()
        if found is None:
            return None
        keys = list(found)
        return [keys[index] for index in self.indices.tolist()]

    def version(self, *, values: bool) -> Any:
        return self.source.version(values=values)

    def watch(self) -> Callable[[int], bool] | None:
        unchanged = self.source.watch()
        return None if unchanged is None else lambda index: unchanged(int(self.indices[index]))


def num_outputs_for(source: Source) -> int | None:
    """Return the number of outputs that the targets require, or None if they do not determine it."""
    if source.classes is not None:
        return len(source.classes)
    targets = source.targets
    if targets is None or not targets.numel():
        return None
    if targets.dim() > 1:
        return targets.shape[1]
    return 1 if targets.is_floating_point() else int(targets.max()) + 1


def evenly_spread(length: int, count: int) -> list[int]:
    """Return up to `count` positions among `length` samples, the first, the last and others at even distances.

    Example:
        >>> evenly_spread(9, 3), evenly_spread(2, 3)
        ([0, 4, 8], [0, 1])
    """
    positions: list[int] = np.linspace(0, length - 1, min(length, count)).round().astype(np.int64).tolist()
    return positions


def type_name(value: Any) -> str:
    """Return the qualified name of the type of `value`."""
    return f"{type(value).__module__}.{type(value).__qualname__}"
