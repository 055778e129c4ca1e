"""Batches whose frozen prefix is computed once: the same batches, served to the same model.

The loop takes them as any others. Around each step it asks to be served, and the model's forward pass
then replays from what is stored of the batch's samples, or computes and stores it, the first time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from finetune.data.base import Arrays, split_batch
from finetune.data.batches import Batches
from finetune.data.raw import PictureFiles
from finetune.features.prefix import Prefix
from finetune.features.store import Store, StoreError
from finetune.features.unread import Unread

log = logging.getLogger("finetune")

_NO_MORE = "cache: no more is kept, as %s"


class CachedBatches:
    """Batches with the activations of a model's prefix.

    Args:
        batches: from arrays or files, with a known number of views of each sample.
        prefix: of the model that the batches are for.
        store: with room for every view of every sample of the batches, at `Batches.rows`.
    """

    def __init__(self, batches: Batches, prefix: Prefix, store: Store) -> None:
        self._batches, self._prefix, self._store = batches, prefix, store
        # Inputs that the model does not read past its prefix are not loaded again, until a step reads them.
        self._skips = not prefix.reads_inputs and batches.source.targets is not None
        self._like: Tensor | None = None
        self._holds = True
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
        try:
            self._store.refresh()
        except StoreError as error:
            log.warning(_NO_MORE, error)
        self._holds = self._prefix.holds()  # else a callback has changed what trains, or a frozen weight
        loaded: Iterator[Any] | None = None
        numbers = zip(self._batches.indices(epoch)[start:], self._batches.rows(epoch)[start:], strict=True)
        for step, (indices, rows) in enumerate(numbers, start):
            if self._holds and self._skips and self._like is not None and self._store.has(rows):
                loaded, batch = None, self._unread(self._like, indices, epoch, step)
            else:
                loaded = self._batches.epoch(epoch, step, keep=not self._skips) if loaded is None else loaded
                batch = next(loaded)
                self.remember(split_batch(batch)[0])
            self._given[id(batch)] = batch, rows
            yield batch

    def serving(self, batch: Any) -> AbstractContextManager[None]:
        """Return the context in which the model's calls with this batch's inputs replay."""
        _, rows = self._given.pop(id(batch))
        inputs = split_batch(batch)[0]
        if not self._holds or not self._prefix.accepts(inputs):
            return nullcontext()
        if self._store.has(rows):
            stored, device = self._store.get(rows), self._batches.device
            return self._prefix.serving(inputs, tuple(kept.to(device, non_blocking=True) for kept in stored))
        activations = self._prefix.compute(inputs)
        try:
            self._store.put(rows, activations)
        except StoreError as error:  # the disk is full; the run goes on without
            log.warning(_NO_MORE, error)
            self._skips = False
        return self._prefix.serving(inputs, activations)

    def remember(self, inputs: Any) -> None:
        """Take note of what inputs look like, so that there can be stand-ins for them."""
        if self._like is None and isinstance(inputs, Tensor):
            self._like = inputs[:0]

    def _unread(self, like: Tensor, indices: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        targets = self._batches.source.targets
        assert targets is not None

        def load() -> Tensor:
            self._skips = False  # this step reads its inputs; ahead of it they load faster
            loaded: Tensor = split_batch(next(self._batches.epoch(epoch, step)))[0]
            return loaded

        inputs = Unread((len(indices), *like.shape[1:]), like, load)
        return inputs, targets[indices.to(targets.device)].to(self._batches.device)


def same_each_epoch(batches: Batches) -> str:
    """Return why the inputs of these batches may be others in every epoch, `""` if there are few of each sample."""
    source = batches.source
    if not isinstance(source, (Arrays, PictureFiles)):
        return f"a {type(source).__name__} may give another sample under the same number each time"
    if batches.views is None:
        return "the augmentation makes new pictures in every epoch; augment_views=4 would keep to 4 of each sample"
    return ""
