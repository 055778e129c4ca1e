"""One shape for every kind of data: a length, samples by index, targets and class names if known."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from finetune.data.sources.labels import LABEL_KEYS, Classes, unknown_class

Indices = Sequence[int] | Tensor


class Source(Dataset[Any]):
    """What `open_source` returns.

    Attributes:
        classes: class names by index, or None where there are none or they are not known.
        targets: all targets, if known without loading the inputs: int64 [N] class indices, float
            [N] or [N, K]; else None.
        kind: which kind of raw item the inputs are, still to be preprocessed; None where they are ready.
        set_aside: a share is for validation where the user gives no validation data.
        collate_fn: how the user's own data set batches its items, or None for torch's default.
    """

    classes: Classes | None = None
    targets: Tensor | None = None
    kind: str | None = None
    set_aside: bool = False
    collate_fn: Any = None

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length: it is read as a stream.")

    def __getitem__(self, index: int) -> Any:
        """Return `(input, target)`, or the input alone where there are no labels."""
        raise TypeError(f"{type(self).__name__} has no samples by index: it is read as a stream.")

    def name(self, index: int) -> str:
        """Return what a message calls this sample: its file, or its number in the user's data."""
        return f"sample {index}"

    def subset(self, indices: Indices) -> Source:
        """Return the samples at `indices`, in that order, as a source that shares the data."""
        raise TypeError(f"{type(self).__name__} cannot be divided: it is read as a stream.")


class Arrays(Source):
    """Inputs in memory, or memory-mapped: a batch is gathered by index in one call.

    Args:
        inputs: [N, ...], a tensor on any device or a numpy array; float64 arrays become float32.
        targets: [N, ...] or None.
        classes: names of the class indices in `targets`, or None.
        indices: int64 [M], the samples that count; None for all.
    """

    def __init__(
        self,
        inputs: Tensor | np.ndarray,
        targets: Tensor | None = None,
        classes: Classes | None = None,
        indices: Tensor | None = None,
    ) -> None:
        self.inputs = inputs
        self.classes = classes
        self.indices = torch.arange(len(inputs)) if indices is None else indices
        self._all_targets = targets
        self.targets = targets if targets is None or indices is None else targets[indices.to(targets.device)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        batch = self.gather(torch.tensor([index]))
        return batch[0] if self.targets is None else (batch[0][0], batch[1][0])

    def gather(self, indices: Tensor) -> Any:
        """Return the batch at int64 [B]: inputs [B, ...], with targets [B, ...] where there are any."""
        inputs = self.rows(self.indices[indices])
        if self.targets is None:
            return inputs
        return inputs, self.targets[indices.to(self.targets.device)]

    def rows(self, rows: Tensor) -> Tensor:
        """Return the inputs at int64 [B], counted in the whole of the user's data."""
        if isinstance(self.inputs, Tensor):
            return self.inputs[rows.to(self.inputs.device)]
        values = np.asarray(self.inputs[rows.numpy()])
        return torch.from_numpy(values.astype(np.float32) if values.dtype == np.float64 else values)

    def name(self, index: int) -> str:
        return f"sample {int(self.indices[index])}"

    def subset(self, indices: Indices) -> Arrays:
        chosen = self.indices[torch.as_tensor(indices, dtype=torch.int64)]
        return Arrays(self.inputs, self._all_targets, self.classes, chosen)


class MapDataset(Source):
    """The user's own map-style data set, item by item as it gives them.

    Args:
        dataset: anything with a length and items by index.
        targets: int64 [N] or float [N, ...] where they could be had without the inputs.
        classes: the class names that count: those of the training data where they were given.
        own_classes: the data set's own class names, which its items' indices mean.
        renumber: int64, own class index -> index in `classes`, -1 for a stranger; None to leave them.
        kind: of the inputs in its items.
        input_key: in items that are dicts, the key of the input; such items become pairs.
        label_key: in items that are dicts, the key of the label.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        targets: Tensor | None = None,
        classes: Classes | None = None,
        own_classes: Classes | None = None,
        renumber: Tensor | None = None,
        kind: str | None = None,
        input_key: str | None = None,
        label_key: str | None = None,
    ) -> None:
        self.dataset = dataset
        self.targets = targets
        self.classes = classes
        self.own_classes = own_classes
        self.renumber = renumber
        self.kind = kind
        self.input_key = input_key
        self.label_key = label_key
        self.indices = torch.arange(len(dataset))
        self.collate_fn = getattr(dataset, "collate_fn", None)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[int(self.indices[index])]
        if self.input_key is not None:
            value = item[self.input_key]
            item = value if self.label_key is None else (value, item[self.label_key])
        return item if self.renumber is None else self._renumbered(item, index)

    def name(self, index: int) -> str:
        return f"sample {int(self.indices[index])}"

    def subset(self, indices: Indices) -> MapDataset:
        part = copy.copy(self)
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        part.indices = self.indices[chosen]
        part.targets = None if self.targets is None else self.targets[chosen]
        return part

    def _renumbered(self, item: Any, index: int) -> Any:
        """Give an item the training data's index for its class."""
        assert self.renumber is not None and self.own_classes is not None and self.classes is not None
        label = target_of(item)
        if label is None:
            return item
        own = int(label)
        target = int(self.renumber[own])
        if target < 0:
            raise unknown_class(self.own_classes[own], self.name(index), self.classes)
        if isinstance(item, dict):
            return {**item, label_key_of(item): target}
        return (item[0], target, *item[2:])


class Stream(Source):
    """The user's IterableDataset: no length, its own order, batched here."""

    def __init__(self, dataset: IterableDataset[Any], classes: Classes | None = None) -> None:
        self.dataset = dataset
        self.classes = classes
        self.collate_fn = getattr(dataset, "collate_fn", None)


class Loader(Source):
    """The user's DataLoader: its own batches, order and workers, used as they are."""

    def __init__(self, loader: DataLoader[Any], classes: Classes | None = None) -> None:
        self.loader = loader
        self.classes = classes


def target_of(batch: Any) -> Any:
    """Return the targets of a batch, or the target of an item: the second of a pair, the label of a dict.

    None where there are none.
    """
    if isinstance(batch, (tuple, list)):
        return batch[1] if len(batch) > 1 else None
    key = label_key_of(batch) if hasattr(batch, "keys") else None
    return None if key is None else batch[key]


def label_key_of(keys: Iterable[str]) -> str | None:
    """Return the one of `keys` that usually names the label, or None."""
    names = list(keys)
    return next((key for key in LABEL_KEYS if key in names), None)


def join_batch(batch: Any, inputs: Any, targets: Any) -> Any:
    """Return a batch like this one with other inputs and targets, as `split_batch` divides them."""
    if isinstance(batch, (tuple, list)):
        return (inputs, targets, *batch[2:])
    key = label_key_of(batch) if hasattr(batch, "keys") else None
    return inputs if key is None else {**inputs, key: targets}


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Divide a batch into inputs and targets: a pair, or a dict without and with its label.

    Targets are None where there are none.
    """
    if isinstance(batch, (tuple, list)) and batch:
        return batch[0], target_of(batch)
    key = label_key_of(batch) if hasattr(batch, "keys") else None
    if key is None:
        return batch, None
    return {name: value for name, value in batch.items() if name != key}, batch[key]
