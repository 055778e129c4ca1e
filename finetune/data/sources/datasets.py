"""Map-style datasets of torch, torchvision and Hugging Face, and any list of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from finetune.data.batch import label_key_of, target_of
from finetune.data.preprocessing.base import SOUND, TEXT, kind_of
from finetune.data.randomness import seeded
from finetune.data.sources.base import Request, Source, type_name
from finetune.data.sources.items import RawItems
from finetune.data.sources.labels import Classes, encode, renumbering, unknown_class
from finetune.data.sources.tables import text_columns, texts_of
from finetune.errors import DataError


class MapDataset(Source):
    """A map-style dataset from the user. Its items are unchanged except for their class indices.

    Args:
        dataset: Any object with a length and items by index.
        targets: int64 [N] or float [N, ...], or None if they are unknown without reading the inputs.
        classes: Class names by index, those of the training data if known.
        own_classes: Class names of the dataset itself, by the index in its items.
        renumber: int64, the index in `classes` of each own class, or -1 if it is unknown. None to keep all indices.
        kind: Kind of raw item of the inputs, or None if they are ready for the model.
        input_key: Key of the input in items that are dicts, which become pairs. None to keep dicts.
        label_key: Key of the label in such items, or None if they have no label.
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
        self.collate_fn = getattr(dataset, "collate_fn", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if self.input_key is not None:
            value = item[self.input_key]
            item = value if self.label_key is None else (value, item[self.label_key])
        return item if self.renumber is None else self._renumbered(item, index)

    def describe(self) -> Iterator[Any]:
        yield type_name(self.dataset)
        yield len(self)

    def _renumbered(self, item: Any, index: int) -> Any:
        """Replace the class index in an item with that of the training data."""
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


def open_dataset(dataset: Any, request: Request) -> Source:
    """Open a map-style dataset.

    Items are unchanged except for raw items: PIL images, Hugging Face audio columns and, if the preprocessing
    takes them, texts and 1-d arrays.

    Args:
        dataset: Any object with a length and items by index.
        request: Settings for opening it.

    Raises:
        DataError: If a class is unknown to the training data, or texts have no labels.
    """
    classes, takes = request.classes, request.takes
    first = _first_item(dataset)
    if takes == TEXT and isinstance(first, dict) and _is_hugging_face(dataset):
        columns = () if _is_tokenized(first) else text_columns(first)
        if columns:
            return _open_texts(dataset, columns, request)
    own = class_names(dataset)
    targets = _targets_of(dataset)
    input_key = label_key = None
    leading = first[0] if isinstance(first, (tuple, list)) and first else first
    if isinstance(first, dict):
        input_key, label_key = _input_key(first, takes), label_key_of(first)
        leading = None if input_key is None else first[input_key]
    source = MapDataset(
        dataset,
        targets=targets,
        classes=own if classes is None else classes,
        own_classes=own,
        renumber=renumbering(own, classes),
        kind=_kind_of(leading, takes),
        input_key=input_key,
        label_key=label_key,
    )
    if targets is not None and source.renumber is not None:
        source.targets = _renumbered(source, targets)
    return source


def _input_key(first: dict[str, Any], takes: str | None) -> str | None:
    """Return the key of the raw item in a dict, or None if its values are ready for the model.

    Raises:
        DataError: If the dict itself is an audio cell, with the sampling rate beside the label.
    """
    if takes == SOUND and {"array", "sampling_rate"} <= first.keys():
        raise DataError(
            "The items have the audio fields 'array' and 'sampling_rate' at the top level. Nest the two in a dict: "
            "{'audio': {'array': ..., 'sampling_rate': ...}, 'label': ...}."
        )
    kinds = {key: _kind_of(value, takes) for key, value in first.items()}
    for key, kind in kinds.items():
        if kind not in (None, TEXT):
            return key
    texts = text_columns(first) if TEXT in kinds.values() and not _is_tokenized(first) else ()
    return texts[0] if len(texts) == 1 else None


def _is_tokenized(first: dict[str, Any]) -> bool:
    return "input_ids" in first  # even if the columns of texts are still there


def _kind_of(value: Any, takes: str | None) -> str | None:
    """Return the kind of a raw item. A string may be an ID, so it is a text only if the preprocessing takes texts."""
    kind = kind_of(value, takes)
    return None if kind == TEXT != takes else kind


def _open_texts(dataset: Any, columns: tuple[str, ...], request: Request) -> RawItems:
    """Open a Hugging Face dataset of texts, which are small enough to read at once."""
    plain = dataset.with_format(None)
    texts = texts_of([list(plain[column]) for column in columns])
    source = RawItems(texts, TEXT)
    if not request.labeled:
        return source
    label = label_key_of(dataset.column_names)
    if label is None:
        raise DataError(
            f"The dataset has the text columns {', '.join(columns)} but no labels; its columns are "
            f"{', '.join(dataset.column_names)}. Name the column of labels 'label'."
        )
    own, classes = class_names(dataset), request.classes
    labels = list(plain[label])
    if own is not None:  # a class index stands for its name
        labels = [own[k] if isinstance(k, int) and 0 <= k < len(own) else None for k in labels]
        classes = own if classes is None else classes
    targets, names = encode(labels, classes, source.name)
    return RawItems(texts, TEXT, targets, names)


def class_names(dataset: Any) -> Classes | None:
    """Return the class names that a dataset declares, or None if it declares none."""
    if isinstance(dataset, Subset):
        return class_names(dataset.dataset)
    if getattr(dataset, "target_transform", None) is not None:
        return None  # `.classes` and `.targets` describe the targets before the transform
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
        # Without the user's transform, which would decode every image.
        return None if key is None else _as_targets(list(dataset.with_format(None)[key]), len(dataset))
    return None


def _as_targets(values: Any, length: int) -> Tensor | None:
    """Return `values` as int64 or float32 [N, ...] if they hold a number, or a row of numbers, per sample."""
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
    """Read one item, or return None if there is none. Random transforms leave the global generators unchanged."""
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
