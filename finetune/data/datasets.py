"""Data sets of other libraries: what can be known of their targets and classes without loading inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from finetune.data.base import Loader, MapDataset, Stream, label_key_of
from finetune.data.labels import Classes, renumbering, unknown_class
from finetune.data.randomness import seeded
from finetune.errors import DataError


def open_dataset(dataset: Any, classes: Classes | None) -> MapDataset:
    """Open a map-style data set, of torch, torchvision or Hugging Face, or any list of samples.

    Raises:
        DataError: a sample of a class the training data doesn't have.
    """
    own = _classes_of(dataset)
    targets = _targets_of(dataset)
    first = _first_item(dataset)
    picture_key = label_key = None
    if isinstance(first, dict):
        picture_key = next((key for key, value in first.items() if isinstance(value, Image.Image)), None)
        label_key = label_key_of(first)
    leading = first[0] if isinstance(first, (tuple, list)) and first else first
    source = MapDataset(
        dataset,
        targets=targets,
        classes=own if classes is None else classes,
        own_classes=own,
        renumber=renumbering(own, classes),
        pictures=picture_key is not None or isinstance(leading, Image.Image),
        picture_key=picture_key,
        label_key=label_key,
    )
    if targets is not None and source.renumber is not None:
        source.targets = _renumbered(source, targets)
    return source


def open_stream(dataset: IterableDataset[Any], classes: Classes | None) -> Stream:
    """Open an iterable data set; its items are what the user made them, class indices included."""
    own = _classes_of(dataset)
    check_same_numbers(own, classes, "The iterable data set")
    return Stream(dataset, own if classes is None else classes)


def open_loader(loader: DataLoader[Any], classes: Classes | None) -> Loader:
    """Open a DataLoader, whose batches stay as they are; class indices can't be renumbered in them."""
    own = _classes_of(loader.dataset)
    check_same_numbers(own, classes, "The DataLoader's data set")
    return Loader(loader, own if classes is None else classes)


def _classes_of(dataset: Any) -> Classes | None:
    if isinstance(dataset, Subset):
        return _classes_of(dataset.dataset)
    if getattr(dataset, "target_transform", None) is not None:
        return None  # the items' targets are no longer what `.classes` and `.targets` speak of
    names = getattr(dataset, "classes", None)
    if names is None and _is_hugging_face(dataset):
        feature = dataset.features.get(label_key_of(dataset.column_names) or "")
        names = getattr(feature, "names", None)
    if not isinstance(names, (list, tuple)) or not names:
        return None
    # ImageNet's names are tuples of synonyms
    return tuple(", ".join(map(str, n)) if isinstance(n, (list, tuple)) else str(n) for n in names)


def _targets_of(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        inner = _targets_of(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for attribute in ("targets", "labels"):
        targets = _as_targets(getattr(dataset, attribute, None), len(dataset))
        if targets is not None:
            return targets
    if _is_hugging_face(dataset):
        key = label_key_of(dataset.column_names)
        # Without the user's transform, or reading the column would decode every picture.
        return None if key is None else _as_targets(list(dataset.with_format(None)[key]), len(dataset))
    return None


def _as_targets(values: Any, length: int) -> Tensor | None:
    """Return `values` as int64 or float32 [N, ...] if they are one number, or row of numbers, a sample."""
    if not isinstance(values, (Sequence, np.ndarray, Tensor)) or isinstance(values, str):
        return None
    try:
        targets = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.array(values))
    except (TypeError, ValueError, RuntimeError):  # file names, boxes, ragged lists
        return None
    if targets.dim() == 0 or len(targets) != length or targets.is_complex():
        return None
    return targets.float() if targets.is_floating_point() else targets.long()


def _is_hugging_face(dataset: Any) -> bool:
    return all(hasattr(dataset, name) for name in ("column_names", "features", "with_format"))


def _first_item(dataset: Any) -> Any:
    """Look at one item; its random transforms, if any, leave no mark on the global generators."""
    if len(dataset) == 0:
        return None
    with seeded("first item"):
        return dataset[0]


def _renumbered(source: MapDataset, targets: Tensor) -> Tensor:
    assert source.renumber is not None and source.own_classes is not None and source.classes is not None
    renumbered = source.renumber[targets]
    strangers = (renumbered < 0).nonzero()
    if len(strangers):
        first = int(strangers[0])
        label = source.own_classes[int(targets[first])]
        raise unknown_class(label, source.name(first), source.classes)
    return renumbered


def check_same_numbers(own: Classes | None, classes: Classes | None, what: str) -> None:
    """Raise DataError if a class index means another class in data that can't be renumbered."""
    if renumbering(own, classes) is None:
        return
    assert own is not None and classes is not None
    k = next(k for k, name in enumerate(own) if k >= len(classes) or classes[k] != name)
    meant = repr(classes[k]) if k < len(classes) else "none at all"
    raise DataError(
        f"{what} numbers the classes in its own way: its class {k} is {own[k]!r}, the training data's is "
        f"{meant}. Give the data set itself, whose classes can be renumbered, or train with the same classes."
    )
