"""Batches on the device, in an order and with an augmentation that depend on (seed, epoch) only."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from finetune.data.audit import check_batch_targets
from finetune.data.loading.decoded_files import decoded_once
from finetune.data.loading.picture_cache import kept_pictures
from finetune.data.loading.samples import (
    Batch,
    Failure,
    Keys,
    Samples,
    WorkerPool,
    collate_stream,
    default_workers,
)
from finetune.data.preprocessing.augmentations import Augmentation, CacheableAugmentation, not_pictures
from finetune.data.preprocessing.base import PICTURE, SOUND, TEXT, InputPreprocessing
from finetune.data.randomness import seed_of, seeded
from finetune.data.sources.base import Source, target_of
from finetune.errors import ArgumentError, DataError
from finetune.nested import num_samples_of, pinned, same_values, tensors_of, to_device

__all__ = ["Batches", "num_samples_of", "to_device"]


# Of a data set of the user's own, so many samples are loaded twice to see whether they are the same.
_FIRST = 8
_PLURALS = {PICTURE: "pictures", TEXT: "text", SOUND: "sound"}
_MAKERS = {
    PICTURE: "picture size and scale: FineTuner(model, preprocessing=Preprocessing(...))",
    TEXT: "tokenizer: FineTuner(model, preprocessing=AutoTokenizer.from_pretrained(...))",
    SOUND: "feature extractor: FineTuner(model, preprocessing=AutoFeatureExtractor.from_pretrained(...))",
}


class Batches:
    """The batches of a source, epoch by epoch, on the device.

    Raw items are prepared as the preprocessing says. Pictures travel as bytes and are normalized on the
    device; so is any other uint8 [N, C, H, W].
    A `DataLoader` of the user's is used as it is: its batches are only moved. Torch's global
    generators are never drawn from.

    Args:
        source: from `open_source`.
        batch_size: samples a batch; the last one may be shorter. A DataLoader has its own.
        shuffle: a new order each epoch. A DataLoader and an iterable data set have their own.
        seed: of order and augmentation.
        device: where the batches go.
        preprocessing: how raw items become input; needed where the source has such.
        augment: picture -> picture, uint8 tensor [C, H, W], or float tensor that is final.
        views: how many augmented pictures there are of each sample, one an epoch in turn, where one sample is
            at its first, the next is at its second; None for a new one in every epoch.
        stand_ins: without `views`, what may take the place of `augment` where pictures are stored, by `in_views`:
            view v of a sample is what the one numbered v makes of it.
        workers: processes that load; None for as many as are worth it. Any number gives the same run,
            but for an iterable data set, which splits its items among workers itself.
        num_classes: where targets could not be looked at beforehand, the labels that are allowed are
            0 to `num_classes` - 1; None for no check.
        keep: keep pictures in memory, up to a fifth of what is free: those that are the same in every epoch
            decoded and resized, if all fit; those that the library itself augments decoded, as many as fit.

    Raises:
        ArgumentError: a batch size below 1; raw items without a preprocessing, or with one for another
            kind; an augmentation for what is no picture; views of what is not augmented, or has no numbers.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        device: torch.device | str = "cpu",
        preprocessing: InputPreprocessing | None = None,
        augment: Augmentation | None = None,
        views: int | None = None,
        stand_ins: Sequence[Augmentation] = (),
        workers: int | None = None,
        num_classes: int | None = None,
        keep: bool = False,
    ) -> None:
        _check_arguments(source, batch_size, preprocessing, augment)
        _check_views(source, views, augment)
        self.source = source
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.device = torch.device(device)
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.steps = source.num_batches(batch_size)
        own = () if augment is None or views is None else (augment,) * views
        read = decoded_once(source, augment) if keep else source
        self._samples = Samples(read, seed, preprocessing, augment, own)
        self._stand_ins = tuple(stand_ins) if views is None else ()
        automatic = default_workers(source, self.steps or 0) if source.indexed else 0
        self.workers = automatic if workers is None else workers
        self._pool: WorkerPool | None = None
        self._kept = kept_pictures(source, preprocessing) if keep and augment is None else None

    def __len__(self) -> int:
        """Return the batches of an epoch. Raises TypeError where the data has no length."""
        if self.steps is None:
            raise TypeError("The number of batches is not known: the data is an iterable without a length.")
        return self.steps

    @property
    def num_samples(self) -> int | None:
        """The samples of an epoch, or None where that is not known beforehand."""
        return self.source.num_samples

    def order(self, epoch: int) -> Tensor:
        """Return int64 [N], the sample indices in the order of this epoch; a function of (seed, epoch)."""
        if not self.shuffle:
            return torch.arange(len(self.source))
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        return torch.randperm(len(self.source), generator=generator)

    def indices(self, epoch: int) -> tuple[Tensor, ...]:
        """Return int64 [B] for each batch of this epoch: the numbers of its samples."""
        return self.order(epoch).split(self.batch_size) if len(self.source) else ()

    @property
    def views(self) -> int | None:
        """How many inputs there are of each sample, one an epoch in turn; None where each epoch has new ones."""
        return 1 if self._samples.augment is None else len(self._samples.views) or None

    def described_views(self) -> list[Callable[[int], str]] | None:
        """Return for each view what says of a sample's index what decides its picture, beside the preprocessing.

        A random view is decided by its number and the sample's index too. The versions of the packages that
        make it are left to the fingerprint, which has them. Empty without augmentation; None where each epoch
        has new pictures, or nothing is known of the function that makes them, as it is the user's.
        """
        makers = [maker for maker in self._samples.views if isinstance(maker, CacheableAugmentation)]
        if self.views is None or len(makers) < len(self._samples.views):
            return None
        return [partial(maker.describe, self.seed, view) for view, maker in enumerate(makers)]

    def repeats(self) -> bool:
        """Tell whether the first samples of a data set come twice alike: in two epochs, or that show the same view.

        In evaluation there is one epoch, again and again.
        """
        few = range(min(_FIRST, len(self.source)))
        again = 1 if self.shuffle and not self._samples.views else 0
        one, other = (self._samples.load([(epoch, index) for index in few]) for epoch in (0, again))
        pairs = list(zip(tensors_of(one), tensors_of(other), strict=False))
        return bool(pairs) and all(map(same_values, *zip(*pairs, strict=True)))

    def rows(self, epoch: int) -> tuple[Tensor, ...]:
        """Return int64 [B] for each batch of this epoch: view * samples + index, a number for each input there is.

        Only where `views` is known.
        """
        assert self.views is not None
        rows = self._shown(epoch) * len(self.source) + torch.arange(len(self.source))
        return tuple(rows[indices] for indices in self.indices(epoch))

    def in_views(self, stored: bool = True) -> Batches:
        """Return the same batches with few views of each sample, or again without; itself where the user chose."""
        views = self._stand_ins if stored else ()
        if not self._stand_ins or views == self._samples.views:
            return self
        other = copy.copy(self)
        other._samples, other._pool = replace(self._samples, views=views), None
        return other

    def serving(self, batch: Batch) -> AbstractContextManager[None]:
        """Return the context for a step on a batch of these: here none is needed."""
        return nullcontext()

    def epoch(self, epoch: int, start: int = 0, *, keep: bool = True) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch number `start` on.

        What lies before `start` is not loaded, except of streams and loaders, which are read past it.
        With `keep=False` nothing is kept for the next epoch.

        Raises:
            DataError: a picture can't be decoded; samples don't form a batch; a label out of range.
        """
        for step, batch in enumerate(self._on_host(epoch, start, keep), start):
            self._check_targets(batch, step)
            if self.source.batched:
                yield to_device(batch, self.device)
                continue
            ready = pinned(batch) if self.device.type == "cuda" else batch  # a pool's are already
            yield self._finished(to_device(ready, self.device))

    def _on_host(self, epoch: int, start: int, keep: bool) -> Iterator[Batch]:
        if not self.source.indexed:
            yield from self._of_stream(epoch, start)
            return
        indices = self.indices(epoch)[start:]
        if self.source.vectorized:
            yield from map(self.source.gather, indices)
            return
        if self._kept is not None and all(map(self._kept.has, indices)):
            self._pool = None  # which ends its processes
            yield from map(self._kept.get, indices)
            return
        for numbers, batch in zip(indices, self._loaded(epoch, indices), strict=True):
            if self._kept is not None and keep:
                self._kept.put(numbers, batch)
            yield batch

    def _loaded(self, epoch: int, indices: Sequence[Tensor]) -> Iterator[Batch]:
        keys = self._keys(epoch)
        batches = [[keys[i] for i in batch.tolist()] for batch in indices]
        if self.workers == 0:
            yield from map(self._samples.load, batches)
            return
        if self._pool is None:
            self._pool = WorkerPool(self._samples, self.workers, pin_memory=self.device.type == "cuda")
        yield from self._pool.load(batches)

    def _keys(self, epoch: int) -> Keys:
        shown = self._shown(epoch).tolist() if self._samples.views else itertools.repeat(epoch)
        return list(zip(shown, range(len(self.source)), strict=False))

    def _shown(self, epoch: int) -> Tensor:
        """Return the view [N] that each sample shows in an epoch.

        All views in equal parts, so that no epoch is odd; and which are together has to do with nothing.
        """
        generator = torch.Generator().manual_seed(seed_of(self.seed, "views"))
        turns = torch.randperm(len(self.source), generator=generator)
        return (epoch + turns) % max(1, len(self._samples.views))

    def _of_stream(self, epoch: int, start: int) -> Iterator[Batch]:
        self.source.set_epoch(epoch)
        batches = self.source.batches(
            self.batch_size,
            workers=self.workers,
            collate_fn=collate_stream(self._samples),
            generator=torch.Generator().manual_seed(seed_of(self.seed, "stream", epoch)),
        )
        for batch in self._drawn(batches, epoch, start):
            if isinstance(batch, Failure):
                raise DataError(batch.message)
            yield batch

    def _drawn(self, stream: Iterable[Batch], epoch: int, start: int) -> Iterator[Batch]:
        """Read a stream with each of its draws a function of (seed, epoch, step), so it can be resumed."""
        with seeded(self.seed, "loader", epoch):
            batches = iter(stream)
        for step in itertools.count():
            with seeded(self.seed, "loader", epoch, step):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            if step >= start:
                yield batch

    def _check_targets(self, batch: Batch, step: int) -> None:
        if self.num_classes is not None and self.source.targets is None:
            check_batch_targets(target_of(batch), self.num_classes, f"batch {step}")

    def _finished(self, batch: Batch) -> Batch:
        if self.preprocessing is None:
            return batch
        if isinstance(batch, (tuple, list)) and batch:
            return type(batch)([self.preprocessing.on_device(batch[0]), *batch[1:]])
        return self.preprocessing.on_device(batch)


def _check_arguments(
    source: Source, batch_size: int, preprocessing: InputPreprocessing | None, augment: Augmentation | None
) -> None:
    if batch_size < 1:
        raise ArgumentError(f"batch_size is {batch_size}; expected 1 or more.")
    if source.kind is not None and (preprocessing is None or preprocessing.kind != source.kind):
        raise ArgumentError(_mismatch(source.kind, preprocessing))
    if augment is not None and source.kind != PICTURE:
        raise ArgumentError(not_pictures())


def _check_views(source: Source, views: int | None, augment: Augmentation | None) -> None:
    if views is None:
        return
    if not isinstance(views, int) or isinstance(views, bool) or views < 0:
        raise ArgumentError(
            f"augment_views is {views!r}; expected how many augmented pictures there are of each sample, from 1 on, "
            f"or 0 for new ones in every epoch."
        )
    if views and (augment is None or not source.indexed):
        lacks = "pictures are not augmented" if source.indexed else "samples have no numbers, as it is read as a stream"
        raise ArgumentError(
            f"augment_views={views} asks for augmented views of each sample, but this data's {lacks}. Leave it out."
        )


def _mismatch(kind: str, preprocessing: InputPreprocessing | None) -> str:
    has = "no preprocessing" if preprocessing is None else f"a preprocessing for {_PLURALS[preprocessing.kind]}"
    return (
        f"The data is {_PLURALS[kind]}, and the model has {has}. Give it its {_MAKERS[kind]}, or give data "
        "that is the model's input already."
    )
