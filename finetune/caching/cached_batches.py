"""Batches with cached prefix activations.

The training loop iterates over them like over plain batches. It wraps each step in `serving`, within which the model's
forward pass replays from the batch's stored activations. In the first epoch, they are computed and stored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.caching.declined import Declined
from finetune.caching.prefix.prefix import Prefix
from finetune.caching.prefix.replay import DivergedError
from finetune.caching.store.store import Store, StoreError
from finetune.data.batch import split_batch
from finetune.data.loading.batches import Batches
from finetune.data.loading.lazy_tensor import LazyTensor
from finetune.data.preprocessing.base import SOUND, TEXT
from finetune.nested import to_device

log = logging.getLogger("finetune")

_FULL = "cache: no more activations are stored, because %s"
_DAMAGED = "cache: damaged activations are computed anew, because %s"
_UNUSED = "cache: unused last epoch, because training_step never called the model on the unmodified batch"
_STALE = "cache: unused this epoch, because the frozen layers or the data have changed since they were stored"


class CachedBatches:
    """Batches served from a store of prefix activations, with the interface of `Batches`.

    Args:
        batches: Batches with a fixed number of views of each sample.
        prefix: Prefix of the trained model.
        store: Store with room for every view of every sample, at `Batches.rows`.
        guarded: Whether to check for changes of the model or the data by custom steps or callbacks.
    """

    def __init__(self, batches: Batches, prefix: Prefix, store: Store, *, guarded: bool = True) -> None:
        self._batches, self._prefix, self._store, self._guarded = batches, prefix, store, guarded
        # Inputs that are not read past the prefix are loaded again only if a step reads them.
        self._skips_loading = not prefix.reads_inputs and batches.source.targets is not None
        self._empty: tuple[Tensor, Tensor] | None = None  # a batch's inputs and targets, without samples
        self._valid = True
        self._wanted = True  # whether the model was called with the last batch unmodified
        self._used: bool | None = None  # the same for any batch of this epoch; None before the first batch
        self._said_unused = self._said_damaged = False
        self._data_version = batches.source.version(values=guarded)
        self._pending: dict[int, tuple[Any, Tensor]] = {}  # batches to be served, with their rows
        self.filling = False  # whether activations have been stored in this epoch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def overridden(self) -> set[nn.Module]:
        """Modules whose `forward` is overridden while a batch is served."""
        return self._prefix.overridden

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of `Batches.epoch`. Inputs with stored activations are loaded only if a step reads them."""
        self._pending.clear()
        self.filling = False
        if self._used is False and not self._said_unused:
            log.info(_UNUSED)
            self._said_unused, self._skips_loading = True, False
        self._used = None
        try:
            self._store.refresh()
        except StoreError as error:
            log.warning(_FULL, error)
        was_valid = self._valid
        unchanged = self._data_version == self._batches.source.version(values=self._guarded)
        self._valid = unchanged and self._prefix.holds(values=self._guarded)
        if was_valid and not self._valid:
            log.warning(_STALE)
        loaded: Iterator[Any] | None = None
        numbers = zip(self._batches.indices(epoch)[start:], self._batches.rows(epoch)[start:], strict=True)
        for step, (indices, rows) in enumerate(numbers, start):
            if not len(indices):  # the last batches have no sample for this process
                yield None
                continue
            if self._valid and self._skips_loading and self._empty is not None and self._store.has(rows):
                loaded, batch = None, self._unread(self._empty, indices, epoch, step)
            else:
                loaded = self._batches.epoch(epoch, step, keep=not self._skips_loading) if loaded is None else loaded
                batch = next(loaded)
                self.remember(batch, indices)
            self._pending[id(batch)] = batch, rows
            yield batch

    @contextmanager
    def serving(self, batch: Any) -> Iterator[None]:
        """Replay the model's calls with this batch's inputs within the context. Parts of a batch are not replayed."""
        known, rows = self._pending.pop(id(batch), (None, torch.empty(0)))
        if known is None:
            yield
            return
        inputs = split_batch(batch)[0]
        if not self._valid or not self._prefix.accepts(inputs) or (self._guarded and not self._prefix.holds()):
            yield
            return
        activations = self._stored(rows)
        if activations is None:
            activations = self._computed(rows, inputs)
        with self._prefix.serving(inputs, activations, guarded=self._guarded) as calls:
            yield
        self._wanted = bool(calls)
        self._used = self._used or self._wanted

    def _stored(self, rows: Tensor) -> tuple[Tensor, ...] | None:
        """Return the stored activations of a batch, or None if they are missing or damaged."""
        if not self._store.has(rows):
            return None
        try:
            stored = self._store.get(rows)
        except StoreError as error:
            if not self._said_damaged:
                log.warning(_DAMAGED, error)
                self._said_damaged = True
            return None
        return tuple(to_device(stored, self._batches.device))

    def _computed(self, rows: Tensor, inputs: Any) -> tuple[Tensor, ...] | None:
        """Compute and store the prefix activations of a batch.

        Returns:
            The activations; None if the model took a different path, or if the last step called it only on modified
            inputs, because this step may do the same.
        """
        if not self._wanted:
            return None
        skips_loading = self._skips_loading
        try:
            activations = self._prefix.compute(inputs)
            self._skips_loading = skips_loading  # inputs of damaged activations are loaded here, not by the step
            self._store.put(rows, activations)
            self.filling = True
        except DivergedError:
            return None
        except StoreError as error:  # the disk is full; training continues without the cache
            log.warning(_FULL, error)
            self._skips_loading = False
        return activations

    def remember(self, batch: Any, indices: Tensor) -> None:
        """Note the form of a batch, so that similar batches can be made without loading inputs."""
        targets = self._batches.source.targets
        if not self._skips_loading or targets is None:
            return
        fits = isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor)
        if fits and self._batches.source.stochastic:  # its items may have other labels
            fits = isinstance(batch[1], Tensor) and torch.equal(batch[1].cpu(), targets[indices])
        self._skips_loading = fits
        self._empty = tuple(part[:0] for part in batch) if fits else None

    def _unread(self, empty: tuple[Tensor, Tensor], indices: Tensor, epoch: int, step: int) -> Any:
        """Return a batch whose inputs are loaded when first read."""
        inputs, targets = empty

        def load() -> Tensor:
            self._skips_loading = False  # steps read their inputs, so loading ahead of time is faster
            loaded: Tensor = split_batch(next(self._batches.epoch(epoch, step)))[0]
            return loaded

        known = self._batches.source.targets
        assert known is not None
        chosen = known[indices.to(known.device)].to(targets.device, targets.dtype)
        return LazyTensor((len(indices), *inputs.shape[1:]), inputs, load), chosen


def varies(batches: Batches, *, requested: bool = False) -> Declined | None:
    """Return why a sample's inputs may differ between epochs apart from augmentation, or None if they are the same.

    A custom dataset is trusted if its first samples are the same when read twice. For training data, the user must also
    have requested a cache, because only evaluation repeats the random numbers of torch, NumPy and Python every epoch.

    Args:
        batches: Batches to cache.
        requested: Whether the user requested a cache.
    """
    source = batches.source
    if source.kind in (TEXT, SOUND):
        return Declined("text and audio are padded to the longest sample of their batch")
    if not source.indexed:
        return Declined("samples of a DataLoader or a stream have no index")
    if source.stochastic:
        if batches.shuffle and not requested:
            return Declined(
                "a custom dataset may return different samples for the same index in each epoch; pass cache='memory' "
                "if yours does not"
            )
        if not batches.repeats():
            return Declined("your dataset returns different samples for the same index in each epoch")
    return None
