"""Batches on the device, whose order and augmentation depend only on (seed, epoch)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from finetune.data.batch import label_key_of, num_samples_of, split_batch, with_target
from finetune.data.loading.image_cache import cache_decoded, cache_prepared
from finetune.data.loading.samples import (
    Batch,
    Failure,
    Keys,
    Samples,
    StreamCollate,
    WorkerPool,
    default_workers,
    loader_error,
    worker_deaths_named,
)
from finetune.data.preprocessing.augmentations import Augmentation, CacheableAugmentation, not_images
from finetune.data.preprocessing.base import IMAGE, SOUND, TEXT, InputPreprocessing
from finetune.data.randomness import seed_of, seeded
from finetune.data.sources.base import Source
from finetune.data.sources.labels import batch_targets
from finetune.data.sources.streams.division import digest_of
from finetune.data.targets import MULTILABEL, TargetRule
from finetune.devices.device import has_own_memory
from finetune.distributed.world import ALONE, World
from finetune.errors import ArgumentError, DataError, whole_number
from finetune.nested import pinned, same_values, tensors_of, to_device
from finetune.signals.stops import interruptible, polled

# Number of samples that `repeats` loads twice: evenly spaced ones, as many random ones, and one per class.
_NUM_COMPARED = 48
_NUM_CLASSES_COMPARED = 128

_NOUNS = {IMAGE: "images", TEXT: "text", SOUND: "audio"}
_FIXES = {
    IMAGE: "image size and scale: FineTuner(model, preprocessing=Preprocessing(...))",
    TEXT: "tokenizer: FineTuner(model, preprocessing=AutoTokenizer.from_pretrained(...))",
    SOUND: "feature extractor: FineTuner(model, preprocessing=AutoFeatureExtractor.from_pretrained(...))",
}


class Batches:
    """Batches of a source on a device, epoch by epoch.

    The host prepares raw items; the device normalizes images and any other uint8 [N, C, H, W]. The batches of a
    `DataLoader` are only moved. Torch's global generators are not used.

    Args:
        source: Source from `open_source`.
        batch_size: Samples per batch; the last batch may be smaller. A DataLoader keeps its own.
        shuffle: Whether to draw a new order every epoch. DataLoaders and iterable datasets keep their own.
        seed: Seed for the order and the augmentation.
        device: Device of the batches.
        preprocessing: Preprocessing of raw items, required if the source has any.
        augment: Function of a PIL image that returns a PIL image, uint8 [C, H, W], or a float tensor
            that is already normalized.
        views: Number of fixed augmented views per sample, cycled one per epoch. In each epoch, equal parts of
            the samples show each view. None draws a new view every epoch.
        stand_ins: Augmentations for the views of `in_views`, one per view, if `views` is None.
        workers: Number of worker processes, or None for a suitable number. Results do not depend on it,
            except for an iterable dataset that divides its items among workers.
        rule: Targets that the task accepts, to check each batch. None checks no targets.
        keep: Whether to keep images in memory: prepared if they are the same in every epoch and all fit,
            otherwise decoded, as many as fit, if the augmentation is built in.
        budget: Maximum number of bytes for these images. None uses a fifth of the free memory.
        join_single: Whether a last batch of one sample joins the one before.
        world: Processes that divide every batch, whose sizes then add up.
        ordered: Whether the batches of all processes, one of each in turn, have to be those of one process in order.

    Raises:
        DataError: If a last batch of one sample cannot be joined.
        DataError: If the processes have different indexed data.
        ArgumentError: If the batch size is below 1, the preprocessing does not match the source, data other
            than images is augmented, or views are requested without augmentation or of a stream.
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
        rule: TargetRule | None = None,
        keep: bool = False,
        budget: int | None = None,
        join_single: bool = False,
        world: World = ALONE,
        ordered: bool = False,
    ) -> None:
        batch_size = whole_number("batch_size", batch_size)
        _check_preprocessing(source, preprocessing, augment)
        views = _checked_views(source, views, augment)
        self.source = source
        self.batch_size = batch_size
        self.world = world
        self.shuffle = shuffle
        self.seed = seed
        self.device = torch.device(device)
        self.preprocessing = preprocessing
        self.rule = rule
        self._passes = 0
        self._joins = join_single and _leaves_single(source, batch_size * world.size)
        if source.indexed:
            _check_same_data(source, world)
        self._read = source if source.indexed or world.size == 1 else source.for_process(world, ordered=ordered)
        self.steps = self._num_steps(batch_size)
        fixed = () if augment is None or views is None else (augment,) * views
        read = cache_decoded(source, augment, budget) if keep else source
        self._samples = Samples(read, seed, preprocessing=preprocessing, augment=augment, views=fixed)
        self._stand_ins = tuple(stand_ins) if views is None else ()
        automatic = default_workers(source, self.steps or 0) if source.indexed else 0
        self.workers = automatic if workers is None else workers
        self._pool: WorkerPool | None = None
        self._prepared = cache_prepared(source, preprocessing, budget) if keep and augment is None else None

    def __len__(self) -> int:
        """Return the number of batches per epoch.

        Raises:
            TypeError: If the number is unknown.
        """
        if self.steps is None:
            raise TypeError("The number of batches is unknown because the data is an iterable without a length.")
        return self.steps

    def _num_steps(self, batch_size: int) -> int | None:
        if not self._read.divided:
            steps = self.source.num_batches(batch_size)
            return None if steps is None else -(-steps // self.world.size) - self._joins
        every = self.world.gathered(self._read.num_batches(batch_size))
        return None if None in every else max(every)  # type: ignore[type-var]

    @property
    def division(self) -> dict[str, int]:
        """Number of processes as `{"divided": n}` if the order of the samples depends on it, else nothing."""
        return {"divided": self.world.size} if self._read.divided else {}

    @property
    def augment(self) -> Augmentation | None:
        """Augmentation of the images, or None."""
        return self._samples.augment

    @property
    def num_samples(self) -> int | None:
        """Number of samples per epoch, or None if it is unknown beforehand."""
        return self.source.num_samples

    def order(self, epoch: int) -> Tensor:
        """Return the sample indices int64 [N] in the order of an epoch, a function of (seed, epoch)."""
        if not self.shuffle:
            return torch.arange(len(self.source))
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        return torch.randperm(len(self.source), generator=generator)

    def indices(self, epoch: int) -> tuple[Tensor, ...]:
        """Return the sample indices int64 [B] of this process's part of each batch of an epoch, which may be empty."""
        return tuple(map(self.world.part, self._indices_of_all(epoch)))

    def _indices_of_all(self, epoch: int) -> tuple[Tensor, ...]:
        batches = self.order(epoch).split(self.batch_size * self.world.size) if len(self.source) else ()
        return (*batches[:-2], torch.cat(batches[-2:])) if self._joins else batches

    # ------------------------------------------------------------------ views, for the feature cache

    @property
    def views(self) -> int | None:
        """Number of different inputs per sample, cycled one per epoch. None if every epoch has new ones."""
        return 1 if self._samples.augment is None else len(self._samples.views) or None

    def rows(self, epoch: int) -> tuple[Tensor, ...]:
        """Return the row int64 [B] of each input in a store of all views, per batch of an epoch.

        The row of a view is `view * num_samples + index`. Call it only if `views` is not None.
        """
        assert self.views is not None
        rows = self._views_shown(epoch) * len(self.source) + torch.arange(len(self.source))
        return tuple(rows[indices] for indices in self.indices(epoch))

    def described_views(self) -> list[Callable[[int], str]] | None:
        """Return a function per view that describes the augmentation of the sample at an index.

        The preprocessing and the versions of packages are not included. The list is empty without
        augmentation. Return None if every epoch has new images, or the augmentation is a custom function.
        """
        cacheable = [augment for augment in self._samples.views if isinstance(augment, CacheableAugmentation)]
        if self.views is None or len(cacheable) < len(self._samples.views):
            return None
        return [partial(augment.describe, self.seed, view) for view, augment in enumerate(cacheable)]

    @interruptible()
    def repeats(self) -> bool:
        """Return whether samples spread over the data, and one of every class, are the same when loaded again.

        In training, they are loaded for two epochs or for the same view; in evaluation, for the same epoch.
        """
        again = 1 if self.shuffle and not self._samples.views else 0
        return bool(compared := self._compared()) and all(
            self._loads_the_same((0, index), (again, index)) for index in compared
        )

    def _loads_the_same(self, *keys: tuple[int, int]) -> bool:
        one, other = (tensors_of(self._samples.load([key])) for key in keys)
        return bool(one) and len(one) == len(other) and all(map(same_values, one, other))

    def _compared(self) -> list[int]:
        """Return samples at even distances, others at random, and the first of every class if the targets are known."""
        size, targets = len(self.source), self.source.targets
        spread = torch.linspace(0, size - 1, min(size, _NUM_COMPARED)).round().long().tolist()
        generator = torch.Generator().manual_seed(seed_of(self.seed, "compared"))
        drawn = torch.randperm(size, generator=generator)[:_NUM_COMPARED].tolist()
        firsts: dict[int, int] = {}
        if targets is not None and targets.dim() == 1 and not targets.is_floating_point():
            for index, target in enumerate(targets.tolist()):
                firsts.setdefault(target, index)
        return list(dict.fromkeys([*spread, *drawn, *list(firsts.values())[:_NUM_CLASSES_COMPARED]]))

    def in_views(self, stored: bool = True) -> Batches:
        """Return the same batches with the stand-ins as views, or without them if not `stored`.

        Without stand-ins, return these batches.
        """
        views = self._stand_ins if stored else ()
        if not self._stand_ins or views == self._samples.views:
            return self
        return self._viewed(views)

    def with_views(self, count: int) -> Batches:
        """Return the same batches with `count` fixed views of each sample by their own augmentation."""
        augment = self._samples.augment
        return self if augment is None else self._viewed((augment,) * count)

    def _viewed(self, views: tuple[Augmentation, ...]) -> Batches:
        other = copy.copy(self)
        other._samples, other._pool = replace(self._samples, views=views), None
        return other

    def serving(self, batch: Batch) -> AbstractContextManager[None]:
        """Return a context for the step on a batch. It does nothing here; cached batches serve features in it."""
        return nullcontext()

    # ------------------------------------------------------------------ loading

    def epoch(self, epoch: int, start: int = 0, *, keep: bool = True) -> Iterator[Batch | None]:
        """Yield this process's part of each batch of an epoch; None for a part without samples.

        Args:
            epoch: Number of the epoch.
            start: Number of the first batch. Earlier ones are not loaded, except from streams and
                loaders, which are read past them.
            keep: Whether to keep prepared images for the next epoch.

        Raises:
            DataError: If an image cannot be decoded, samples do not form a batch, a label is out of range, or a stream
            gives no sample.
        """
        step = None
        self._passes += 1
        with worker_deaths_named():
            for step, batch in enumerate(polled(self._host_batches(epoch, start, keep)), start):
                yield None if batch is None else self._on_device(self._with_checked_targets(batch, step))
        if step is None and start == 0 and not self.source.indexed:
            raise DataError(
                f"The data gave no sample in pass {self._passes} over it. Expected an iterable dataset to start anew "
                f"in every pass: its __iter__ has to open the file or make the iterator again. A DataLoader with "
                f"drop_last needs at least batch_size samples."
            )

    @interruptible()
    def first(self) -> Batch | None:
        """Return the first batch without using it up, or None if there is none.

        Raises:
            DataError: If an image cannot be decoded, or samples do not form a batch.
        """
        if self.source.indexed:
            return next(self.epoch(0), None)
        with seeded(self.seed, "look"):
            with self._explained():
                looked = self.source.look(self.batch_size, StreamCollate(self._samples))
            batch = _unless_failed(looked)
        return None if batch is None else self._on_device(batch)

    def stand_in(self) -> Batch:
        """Return a batch for a process without samples in a step, which must take part in it all the same."""
        if not self.source.indexed:
            if (first := self.first()) is None:
                raise DataError(
                    f"Process {self.world.rank} of {self.world.size} has no sample of the training data, which is "
                    f"divided by rank. Expected one in each. Use fewer processes, or more shards."
                )
            return first
        batch = next(self._read_samples(0, [torch.zeros(1, dtype=torch.int64)], keep=False))
        return self._on_device(self._with_checked_targets(batch, 0))

    def _on_device(self, batch: Batch) -> Batch:
        if self.source.batched:
            return to_device(batch, self.device)
        ready = pinned(batch) if has_own_memory(self.device) else batch  # a no-op for batches pinned by workers
        return self._finished(to_device(ready, self.device))

    def _host_batches(self, epoch: int, start: int, keep: bool) -> Iterator[Batch | None]:
        if not self.source.indexed:
            yield from self._read_stream(epoch, start)
            return
        parts = self.indices(epoch)[start:]
        loaded = self._read_samples(epoch, [part for part in parts if len(part)], keep)
        for part in parts:
            yield next(loaded) if len(part) else None

    def _read_samples(self, epoch: int, indices: Sequence[Tensor], keep: bool) -> Iterator[Batch]:
        if self.source.vectorized:
            yield from map(self.source.gather, indices)
            return
        if self._prepared is not None and self._prepared.has(indices):
            self._pool = None  # ends its processes
            yield from map(self._prepared.get, indices)
            return
        for numbers, batch in zip(indices, self._load(epoch, indices), strict=True):
            if self._prepared is not None and keep:
                self._prepared.put(numbers, batch)
            yield batch

    def _load(self, epoch: int, indices: Sequence[Tensor]) -> Iterator[Batch]:
        batches = _keys(epoch, indices, self._views_shown(epoch) if self._samples.views else None)
        if self.workers == 0:
            yield from map(self._samples.load, batches)
            return
        if self._pool is None:
            self._pool = WorkerPool(self._samples, self.workers, pin_memory=has_own_memory(self.device))
        yield from self._pool.load(batches)

    def _views_shown(self, epoch: int) -> Tensor:
        """Return the view int64 [N] that each sample shows in an epoch.

        Every epoch mixes all views in equal parts, at random, so that epochs do not differ systematically.
        """
        generator = torch.Generator().manual_seed(seed_of(self.seed, "views"))
        turns = torch.randperm(len(self.source), generator=generator)
        return (epoch + turns) % max(1, len(self._samples.views))

    def _read_stream(self, epoch: int, start: int) -> Iterator[Batch | None]:
        self._read.set_epoch(epoch)
        stream = self._read.batches(
            self.batch_size,
            workers=self.workers,
            collate_fn=StreamCollate(self._samples),
            generator=torch.Generator().manual_seed(seed_of(self.seed, "stream", epoch)),
        )
        turns = ALONE if self._read.divided else self.world
        batches = self._seeded(stream, epoch, start * turns.size)
        own = itertools.islice(batches, turns.rank, None, turns.size)
        batch = next(own, None)
        while self.world.any(batch is not None):  # the part of one process may be longer
            yield None if batch is None else _unless_failed(batch)
            batch = next(own, None)

    def _seeded(self, stream: Iterable[Batch], epoch: int, start: int) -> Iterator[Batch]:
        """Yield a stream from `start` on. Each draw is seeded by (seed, epoch, step), so the stream can be resumed."""
        with seeded(self.seed, "loader", epoch):
            batches = iter(stream)
        for step in itertools.count():
            with seeded(self.seed, "loader", epoch, step):
                try:
                    with self._explained():
                        batch = next(batches)
                except StopIteration:
                    return
            if step >= start:
                yield batch

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Name the samples for which the user's own DataLoader fails."""
        try:
            yield
        except (TypeError, RuntimeError, ValueError, KeyError) as error:
            problem = loader_error(getattr(self.source, "iterable", None))
            if problem is None:
                raise
            raise problem from error

    def _with_checked_targets(self, batch: Batch, step: int) -> Batch:
        """Return the batch with its labels as a tensor, if they are names or numbers in a list.

        Targets that were checked beforehand are not checked again.
        """
        if self.rule is None or (self.source.vectorized and self.source.targets is not None):
            return batch
        inputs, tensor = split_batch(batch)
        targets = tensor
        if self.rule.as_tensors:
            several = self.rule.kind == MULTILABEL
            samples, classes = num_samples_of(inputs), self.source.classes
            tensor = batch_targets(targets, samples, classes, f"batch {step}", several=several)
        self.rule.check(tensor, lambda i: f"sample {i} of batch {step}")
        return batch if tensor is targets else with_target(batch, tensor)

    def _finished(self, batch: Batch) -> Batch:
        if self.preprocessing is None:
            return batch
        if isinstance(batch, (tuple, list)) and batch:
            return type(batch)([self.preprocessing.on_device(batch[0]), *batch[1:]])
        if isinstance(batch, dict) and len(names := [name for name in batch if name != label_key_of(batch)]) == 1:
            return {**batch, names[0]: self.preprocessing.on_device(batch[names[0]])}
        return self.preprocessing.on_device(batch)


def _keys(epoch: int, indices: Sequence[Tensor], shown: Tensor | None) -> Iterator[Keys]:
    """Yield the keys of each batch. Those of a million samples together would take long and much memory.

    Args:
        epoch: Number of the epoch.
        indices: Sample indices int64 [B] of each batch.
        shown: View int64 [N] that each sample shows, or None without views.
    """
    for batch in indices:
        first = itertools.repeat(epoch) if shown is None else shown[batch].tolist()
        yield list(zip(first, batch.tolist(), strict=False))


def _leaves_single(source: Source, batch_size: int) -> bool:
    """Return whether the last of several batches of an indexed source has one sample.

    Raises:
        DataError: If a stream or loader has such a batch.
    """
    samples, size = source.num_samples, getattr(source, "batch_size", None) or batch_size
    single = samples is not None and samples > size and samples % size == 1
    if single and not source.indexed:
        raise DataError(
            f"The last of the batches of {size} from {samples} samples has one sample, but a norm of the model has no "
            f"running statistics and needs several. Choose another batch size, or set drop_last=True in a DataLoader."
        )
    return single


def _check_same_data(source: Source, world: World) -> None:
    """Check that all processes have the same data, by its length and its targets.

    Raises:
        DataError: If it differs, so that each would take its part of something else.
    """
    if world.size == 1:
        return
    every = world.gathered((len(source), digest_of([source.targets])))
    if len({*every}) > 1:
        sizes = ", ".join(str(size) for size, _ in every)
        raise DataError(
            f"The processes have different data, of {sizes} samples. Pass the same data in all of them: each trains on "
            f"its part. With FineTuner(distributed=False), each trains a model of its own."
        )


def _unless_failed(batch: Batch | Failure) -> Batch:
    if isinstance(batch, Failure):
        raise DataError(batch.message)
    return batch


def _check_preprocessing(
    source: Source, preprocessing: InputPreprocessing | None, augment: Augmentation | None
) -> None:
    if source.kind is not None and (preprocessing is None or preprocessing.kind != source.kind):
        has = "no preprocessing" if preprocessing is None else f"a preprocessing for {_NOUNS[preprocessing.kind]}"
        raise ArgumentError(
            f"The data is {_NOUNS[source.kind]}, but the model has {has}. Pass its {_FIXES[source.kind]}, or pass "
            "data that is already model input."
        )
    if augment is not None and source.kind != IMAGE:
        raise not_images()


def _checked_views(source: Source, views: int | None, augment: Augmentation | None) -> int | None:
    if views is None:
        return None
    views = whole_number("augment_views", views, at_least=0)
    if views and (augment is None or not source.indexed):
        lacks = "its images are not augmented" if source.indexed else "it is read as a stream, without sample numbers"
        raise ArgumentError(f"augment_views={views} needs data with fixed views of each sample, but {lacks}. Omit it.")
    return views
