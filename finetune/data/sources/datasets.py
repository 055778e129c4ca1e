"""Data sets of other libraries: what can be known of their targets and classes without loading inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from finetune.data.preprocessing.base import SOUND, TEXT, kind_of
from finetune.data.randomness import seeded
from finetune.data.sources.base import Loader, MapDataset, Source, Stream, label_key_of
from finetune.data.sources.columns import text_columns
from finetune.data.sources.files import RawItems
from finetune.data.sources.labels import Classes, encode, renumbering, unknown_class
from finetune.data.sources.tables import texts_of
from finetune.errors import DataError


def open_dataset(dataset: Any, classes: Classes | None, labelled: bool, takes: str | None) -> Source:
    """Open a map-style data set, of torch, torchvision or Hugging Face, or any list of samples.

    Items are what the user made them, but for PIL pictures, Hugging Face's audio columns, and texts and
    1-d arrays where the preprocessing `takes` these.

    Raises:
        DataError: a sample of a class the training data doesn't have; texts without labels.
    """
    first = _first_item(dataset)
    if takes == TEXT and isinstance(first, dict) and _is_hugging_face(dataset):
        columns = () if _is_tokenized(first) else text_columns(first)
        if columns:
            return _open_texts(dataset, columns, classes, labelled)
    own = _classes_of(dataset)
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
    """Return the key of the raw item in an item that is a dict; None where its values are ready.

    Raises:
        DataError: the item is itself a sound, with its sampling rate beside its label.
    """
    if takes == SOUND and {"array", "sampling_rate"} <= first.keys():
        raise DataError(
            "The items have 'array' and 'sampling_rate' of a sound side by side with the rest. Put the two into a "
            "dictionary of their own, {'audio': {'array': ..., 'sampling_rate': ...}, 'label': ...}."
        )
    kinds = {key: _kind_of(value, takes) for key, value in first.items()}
    for key, kind in kinds.items():
        if kind not in (None, TEXT):
            return key
    texts = text_columns(first) if TEXT in kinds.values() and not _is_tokenized(first) else ()
    return texts[0] if len(texts) == 1 else None


def _is_tokenized(first: dict[str, Any]) -> bool:
    return "input_ids" in first  # whatever columns of text are still beside it


def _kind_of(value: Any, takes: str | None) -> str | None:
    """Return the kind of a raw item; a text only where that is what is taken, for it may be an id."""
    kind = kind_of(value, takes)
    return None if kind == TEXT != takes else kind


def _open_texts(dataset: Any, columns: tuple[str, ...], classes: Classes | None, labelled: bool) -> RawItems:
    """Open a Hugging Face data set of texts, which are small enough to be read at once."""
    plain = dataset.with_format(None)
    texts = texts_of([list(plain[column]) for column in columns])
    source = RawItems(texts, TEXT)
    if not labelled:
        return source
    label = label_key_of(dataset.column_names)
    if label is None:
        raise DataError(
            f"The data set has the texts {', '.join(columns)} and no labels; its columns are "
            f"{', '.join(dataset.column_names)}. Call the one of labels 'label'."
        )
    own = _classes_of(dataset)
    labels = list(plain[label])
    if own is not None:  # a class's number stands for its name
        labels = [own[k] if isinstance(k, int) and 0 <= k < len(own) else None for k in labels]
        classes = own if classes is None else classes
    targets, names = encode(labels, classes, source.name)
    return RawItems(texts, TEXT, targets, names)


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
