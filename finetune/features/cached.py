"""Batches whose frozen prefix is computed once: the same batches, served to the same model.

The loop takes them as any others. Around each step it asks to be served, and the model's forward pass
then replays from what is stored of the batch's samples, or computes and stores it, the first time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from finetune.data.base import Arrays, split_batch
from finetune.data.batches import Batches
from finetune.data.raw import PictureFiles
from finetune.features.prefix import DivergedError, Prefix
from finetune.features.store import Store, StoreError


class CachedBatches:
    """Batches with the activations of a model's prefix.

    Args:
        batches: from arrays or files, with a known number of views of each sample.
        prefix: of the model that the batches are for.
        store: with room for every view of every sample of the batches, at `Batches.rows`.
        handed_on: the step only hands its inputs on to the model and looks at nothing of them. Where the
            model does not read them past its prefix either, they are not loaded again.
    """

    def __init__(self, batches: Batches, prefix: Prefix, store: Store, *, handed_on: bool) -> None:
        self._batches, self._prefix, self._store = batches, prefix, store
        self._skips = handed_on and not prefix.reads_inputs and batches.source.targets is not None
        self._like: Tensor | None = None
        self._holds = True
        self._given: dict[int, tuple[Any, Tensor]] = {}  # the batches on their way, with their rows in the store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield what `Batches.epoch` yields; batches that nothing will read have stand-ins for inputs."""
        self._given.clear()
        self._holds = self._prefix.holds()  # else a callback has changed what trains, or a frozen weight
        loaded: Iterator[Any] | None = None
        numbers = zip(self._batches.indices(epoch)[start:], self._batches.rows(epoch)[start:], strict=True)
        for step, (indices, rows) in enumerate(numbers, start):
            if self._holds and self._skips and self._like is not None and self._store.has(rows):
                loaded, batch = None, self._stand_in(self._like, indices)
            else:
                loaded = self._batches.epoch(epoch, step) if loaded is None else loaded
                batch = next(loaded)
                self._remember(split_batch(batch)[0])
            self._given[id(batch)] = batch, rows
            yield batch

    def serving(self, batch: Any) -> AbstractContextManager[None]:
        """Return the context in which the model's calls with this batch's inputs replay."""
        _, rows = self._given.pop(id(batch))
        inputs = split_batch(batch)[0]
        if not self._holds or not self._prefix.accepts(inputs):
            return nullcontext()
        if self._store.has(rows):
            device = self._batches.device
            return self._prefix.serving(inputs, tuple(kept.to(device) for kept in self._store.get(rows)))
        activations = self._prefix.compute(inputs)
        try:
            self._store.put(rows, activations)
        except StoreError:  # the disk is full; the run goes on without
            self._skips = False
        return self._prefix.serving(inputs, activations)

    def _remember(self, inputs: Any) -> None:
        if self._like is None and isinstance(inputs, Tensor):
            self._like = inputs[:0]

    def _stand_in(self, like: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        targets = self._batches.source.targets
        assert targets is not None
        inputs = Unread((len(indices), *like.shape[1:]), like)
        return inputs, targets[indices.to(targets.device)].to(self._batches.device)


class Unread(Tensor):
    """Inputs that were not loaded, because nothing reads them; whatever does is an error and no wrong result."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, size: tuple[int, ...], like: Tensor) -> Unread:
        made: Unread = Tensor._make_wrapper_subclass(cls, size, dtype=like.dtype, device=like.device)
        return made

    def __init__(self, size: tuple[int, ...], like: Tensor) -> None: ...

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Unread(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise DivergedError(
            f"{func} reads inputs that were left out, because nothing read them when the model's frozen part was "
            f"computed. Give fit cache=False."
        )


def same_each_epoch(batches: Batches) -> str:
    """Return why the inputs of these batches may be others in every epoch, `""` if there are few of each sample."""
    source = batches.source
    if not isinstance(source, (Arrays, PictureFiles)):
        return f"a {type(source).__name__} may give another sample under the same number each time"
    if batches.views is None:
        return "the augmentation makes new pictures in every epoch; augment_views=4 would keep to 4 of each sample"
    return ""


def in_few_views(batches: Batches, epochs: int) -> Batches:
    """Return the batches with the library's few views of a sample where storing these can save work; else as given."""
    viewed = batches.in_views()
    if viewed is batches or same_each_epoch(viewed) or viewed.views is None or viewed.views >= epochs:
        return batches
    return viewed


def approximation(batches: Batches, given: Batches) -> str:
    """Return what is to be said of the views in these batches, made of those that `fit` was given; `""` if nothing."""
    if batches is not given:
        return (
            f"{batches.views} views of each picture, one of them as it is evaluated, in turn, an approximation of the "
            "new crops in every epoch that cannot be stored; augment_views=0 asks for these"
        )
    if batches.views is None or batches.views == 1:
        return ""
    return f"{batches.views} views of each picture, in turn, an approximation of new ones in every epoch"
