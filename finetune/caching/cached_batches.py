"""Batches whose frozen prefix is computed once: the same batches, served to the same model.

The loop takes them as any others. Around each step it asks to be served, and the model's forward pass
then replays from what is stored of the batch's samples, or computes and stores it, the first time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.caching.prefix.prefix import DivergedError, Prefix
from finetune.caching.store.memory import Store, StoreError
from finetune.data.loading.batches import Batches
from finetune.data.loading.lazy_tensor import LazyTensor
from finetune.data.preprocessing.base import SOUND, TEXT
from finetune.data.sources.base import split_batch

log = logging.getLogger("finetune")

_NO_MORE = "cache: no more is kept, as %s"
_UNUSED = "cache: not used in the last epoch, as no call of the model was on a batch as it is"
_ENDED = "cache: not used in this epoch, as what is frozen, or the data, has changed since it was stored"


class CachedBatches:
    """Batches with the activations of a model's prefix.

    Args:
        batches: from arrays or files, with a known number of views of each sample.
        prefix: of the model that the batches are for.
        store: with room for every view of every sample of the batches, at `Batches.rows`.
        guarded: steps or callbacks of the user's own run between and around those of the library.
    """

    def __init__(self, batches: Batches, prefix: Prefix, store: Store, *, guarded: bool = True) -> None:
        self._batches, self._prefix, self._store, self._guarded = batches, prefix, store, guarded
        # Inputs that the model does not read past its prefix are not loaded again, until a step reads them.
        self._skips = not prefix.reads_inputs and batches.source.targets is not None
        self._like: tuple[Tensor, Tensor] | None = None  # inputs and targets of no sample
        self._holds = True
        self._wanted = True  # the model was called with the last batch as it is
        self._taken: bool | None = None  # in this epoch, by any call of the model; None before a batch was offered
        self._said_unused = False
        self._data = batches.source.version(values=guarded)
        self._given: dict[int, tuple[Any, Tensor]] = {}  # the batches on their way, with their rows in the store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def overridden(self) -> set[nn.Module]:
        """The modules whose `forward` is overridden while a batch is served."""
        return self._prefix.overridden

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield what `Batches.epoch` yields; inputs whose activations are stored are loaded when a step reads them."""
        self._given.clear()
        if self._taken is False and not self._said_unused:
            log.info(_UNUSED)
            self._said_unused, self._skips = True, False
        self._taken = None
        try:
            self._store.refresh()
        except StoreError as error:
            log.warning(_NO_MORE, error)
        held = self._holds  # until a callback changes what is frozen, or the data
        unchanged = self._data == self._batches.source.version(values=self._guarded)
        self._holds = unchanged and self._prefix.holds(values=self._guarded)
        if held and not self._holds:
            log.warning(_ENDED)
        loaded: Iterator[Any] | None = None
        numbers = zip(self._batches.indices(epoch)[start:], self._batches.rows(epoch)[start:], strict=True)
        for step, (indices, rows) in enumerate(numbers, start):
            if self._holds and self._skips and self._like is not None and self._store.has(rows):
                loaded, batch = None, self._unread(self._like, indices, epoch, step)
            else:
                loaded = self._batches.epoch(epoch, step, keep=not self._skips) if loaded is None else loaded
                batch = next(loaded)
                self.remember(batch, indices)
            self._given[id(batch)] = batch, rows
            yield batch

    @contextmanager
    def serving(self, batch: Any) -> Iterator[None]:
        """Hold the context in which the model's calls with this batch's inputs replay."""
        _, rows = self._given.pop(id(batch))
        inputs = split_batch(batch)[0]
        if not self._holds or not self._prefix.accepts(inputs) or (self._guarded and not self._prefix.holds()):
            yield
            return
        activations = self._get(rows) if self._store.has(rows) else self._computed(rows, inputs)
        with self._prefix.serving(inputs, activations, guarded=self._guarded) as calls:
            yield
        self._wanted = bool(calls)
        self._taken = self._taken or self._wanted

    def _get(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(kept.to(self._batches.device, non_blocking=True) for kept in self._store.get(rows))

    def _computed(self, rows: Tensor, inputs: Any) -> tuple[Tensor, ...] | None:
        """Compute and store what is stored of a batch; None if the model does something else on this one.

        Nor if the last step called the model with other inputs than its batch's, as this one then may too.
        """
        if not self._wanted:
            return None
        try:
            activations = self._prefix.compute(inputs)
            self._store.put(rows, activations)
        except DivergedError:
            return None
        except StoreError as error:  # the disk is full; the run goes on without
            log.warning(_NO_MORE, error)
            self._skips = False
        return activations

    def remember(self, batch: Any, indices: Tensor) -> None:
        """Take note of what a batch looks like, so that it can be made again without its inputs."""
        targets = self._batches.source.targets
        if not self._skips or targets is None:
            return
        self._skips = isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor)
        if self._skips and self._batches.source.stochastic:  # what it gives may be another label
            self._skips = isinstance(batch[1], Tensor) and torch.equal(batch[1].cpu(), targets[indices])
        self._like = tuple(part[:0] for part in batch) if self._skips else None

    def _unread(self, like: tuple[Tensor, Tensor], indices: Tensor, epoch: int, step: int) -> Any:
        inputs, targets = like

        def load() -> Tensor:
            self._skips = False  # this step reads its inputs; ahead of it they load faster
            loaded: Tensor = split_batch(next(self._batches.epoch(epoch, step)))[0]
            return loaded

        known = self._batches.source.targets
        assert known is not None
        chosen = known[indices.to(known.device)].to(targets.device, targets.dtype)
        return LazyTensor((len(indices), *inputs.shape[1:]), inputs, load), chosen


def same_each_epoch(batches: Batches, *, asked: bool = False) -> str:
    """Return why the inputs of these batches may be others in every epoch, `""` if there are few of each sample.

    A user's own data set is trusted where its first samples come twice alike, and in training only if the user
    asked for it to be stored: in evaluation what it draws from torch, NumPy or Python is the same each time.
    """
    source = batches.source
    if source.kind in (TEXT, SOUND):
        return "texts and sounds are padded to the longest of their batch"
    if not source.indexed:
        return "samples of a DataLoader or a stream have no numbers"
    if source.stochastic:
        if batches.shuffle and not asked:
            return (
                "a data set of your own may give another sample under the same number in each epoch; "
                "cache='memory' if it does not"
            )
        if not batches.repeats():
            return "your data set gives another sample under the same number in each epoch"
    if batches.views is None:
        return "the augmentation makes new pictures in every epoch; augment_views=4 would keep to 4 of each sample"
    return ""
