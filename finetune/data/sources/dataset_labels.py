"""Labels that a dataset declares, checked against its items, and the numbering of its classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import ChainDataset, ConcatDataset, Dataset, Subset

from finetune.data.batch import label_key_of, target_of
from finetune.data.randomness import seeded
from finetune.data.sources.base import Request, evenly_spread
from finetune.data.sources.labels import (
    Classes,
    Meaning,
    are_other_numbers,
    bytes_as_label,
    in_order,
    renumbering,
    target_tensor,
    unknown_class,
)
from finetune.errors import DataError
from finetune.naming.unicode import normalized
from finetune.threads.cached import cached_property

logger = logging.getLogger("finetune")

_MAX_COMPARED = 16  # items whose label is compared with the declared one


@dataclass(frozen=True)
class DatasetLabels:
    """Labels of a map-style dataset.

    Attributes:
        targets: Targets of all samples, or None if they are unknown without reading the items.
        classes: Class names by index, or None.
        renumber: Function of a sample's index and label that returns its target, or None to keep all labels.
    """

    targets: Tensor | None = None
    classes: Classes | None = None
    renumber: Callable[[int, Any], Any] | None = None


def open_labels(dataset: Any, first: Any, request: Request) -> DatasetLabels:
    """Open the labels of a map-style dataset: names become class indices, and indices those of the training data.

    Args:
        dataset: The dataset, possibly of several parts.
        first: Label of its first item, or None.
        request: Settings for opening it.

    Raises:
        DataError: If a class is unknown, or the parts number their classes differently and cannot be renumbered.
    """
    if not request.labeled:
        return DatasetLabels(classes=request.classes)
    if isinstance(first, bytes):
        raise bytes_as_label(first)
    parts = _Parts.of(dataset)
    if parts.leaves and all(names_of_lists(leaf) for leaf in parts.leaves):
        return _several(parts, request)
    declared = parts.gathered([_declared(leaf) for leaf in parts.leaves])
    if declared is not None and not _agree(dataset, declared):
        declared = None
    declared = _typed_as(first, declared)
    labels = _named(dataset, declared, request) if isinstance(first, str) else _numbered(parts, declared, request)
    single = isinstance(first, str) or (any(map(class_names, parts.leaves)) and _is_whole_number(first))
    return _in_rows(labels) if request.meaning.several and single and labels.classes else labels


def _named(dataset: Any, declared: Any, request: Request) -> DatasetLabels:
    """Return the labels of items whose label is a class name."""
    meaning = request.meaning
    if declared is None and meaning.classes is None:
        logger.info("Reading all %d samples once, because their labels are names.", len(dataset))
        with seeded("labels"):
            declared = [target_of(dataset[index]) for index in range(len(dataset))]
    encoded = (None, meaning.classes) if declared is None else meaning.encode(declared, "sample {}".format)
    targets, classes = encoded
    return DatasetLabels(targets, classes, _ByName(classes or ()))


def _numbered(parts: _Parts, declared: Tensor | None, request: Request) -> DatasetLabels:
    """Return the labels of items whose label is a number or a row of numbers."""
    meaning = request.meaning
    own = [class_names(leaf) for leaf in parts.leaves]
    for names in own:
        meaning.check_numbering(names)
    agreed = len({*own}) < 2
    if not meaning.names or (agreed and own[:1] in ([], [None])):
        if meaning.numbers is not True and are_other_numbers(meaning.classes):
            return _renumbered(declared, meaning.classes, _ByName(meaning.classes or ()))
        return DatasetLabels(declared, meaning.classes)
    if None in own:
        raise parts_disagree(own)
    classes = meaning.classes or (own[0] if agreed else in_order(name for names in own for name in names or ()))
    tables = tuple(renumbering(names, classes) for names in own)
    if all(table is None for table in tables):
        return DatasetLabels(declared, classes)
    return _renumbered(
        declared, classes, _ByPart(parts.part, tuple(names or () for names in own), tables, classes or ())
    )


def _several(parts: _Parts, request: Request) -> DatasetLabels:
    """Return the labels of items that have any number of them, as a 0 or 1 per class."""
    own = [names_of_lists(leaf) or () for leaf in parts.leaves]
    classes = request.classes or (own[0] if len({*own}) == 1 else in_order(name for names in own for name in names))
    renumber = _ByLists(parts.part, tuple(own), replace(request.meaning, classes=classes))
    declared = parts.gathered([list(leaf.with_format(None)[label_key_of(leaf.column_names)]) for leaf in parts.leaves])
    rows = [renumber(sample, row) for sample, row in enumerate(declared)]
    return DatasetLabels(torch.stack(rows) if rows else None, classes, renumber)


@dataclass(frozen=True)
class _ByLists:
    """Function of a sample's index and a list of its class indices that returns a 0 or 1 per class, float32 [K].

    Attributes:
        part: Part of each sample, int64 [N].
        own: Class names of each part.
        meaning: Meaning of the labels, with the classes.
    """

    part: Tensor
    own: tuple[Classes, ...]
    meaning: Meaning

    def __call__(self, sample: int, label: Any) -> Any:
        names = self.own[int(self.part[sample])]
        row = [names[int(index)] for index in label]
        return self.meaning.encode_several([row], lambda _: f"sample {sample}")[0][0]


def _in_rows(labels: DatasetLabels) -> DatasetLabels:
    """Return labels that are one class per sample as a 0 or 1 per class."""
    targets = labels.targets
    if targets is not None and targets.dim() == 1 and len(targets):
        row = _ByRow(None, len(labels.classes or ()))
        targets = torch.stack([row(sample, label) for sample, label in enumerate(targets.tolist())])
    return DatasetLabels(targets, labels.classes, _ByRow(labels.renumber, len(labels.classes or ())))


@dataclass(frozen=True)
class _ByRow:
    """Function of a sample's index and its label that returns a 0 or 1 per class, float32 [K].

    Attributes:
        renumber: Function of the same that returns the index of the class, or None if it is the label.
        classes: Number of classes.
    """

    renumber: Callable[[int, Any], Any] | None
    classes: int

    def __call__(self, sample: int, label: Any) -> Any:
        index = int(label if self.renumber is None else self.renumber(sample, label))
        if not 0 <= index < self.classes:
            raise DataError(f"sample {sample} has the label {index}, but its dataset has {self.classes} classes.")
        return one_hot(torch.tensor(index), self.classes).float()


def _is_whole_number(label: Any) -> bool:
    number = target_tensor(label)
    return number is not None and number.numel() == 1 and not number.is_floating_point()


def _renumbered(declared: Tensor | None, classes: Classes | None, renumber: Callable[[int, Any], Any]) -> DatasetLabels:
    targets = None
    if declared is not None:
        targets = torch.tensor([renumber(sample, label) for sample, label in enumerate(declared.tolist())])
    return DatasetLabels(targets, classes, renumber)


@dataclass(frozen=True)
class _ByName:
    """Function of a sample's index and its label, a name or a whole number, that returns the index of this class."""

    classes: Classes

    def __call__(self, sample: int, label: Any) -> Any:
        number = None if isinstance(label, str) else target_tensor(label)
        if not isinstance(label, str) and (number is None or number.numel() != 1 or bool(number != number.round())):
            return label
        name = normalized(label if number is None else str(int(number)))
        if name not in self._index:
            raise unknown_class(name, f"sample {sample}", self.classes)
        return self._index[name]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {normalized(name): k for k, name in enumerate(self.classes)}


@dataclass(frozen=True)
class _ByPart:
    """Function of a sample's index and the class index in its part that returns the index in `classes`.

    Attributes:
        part: int64 [N], the part of each sample.
        own: Class names of each part.
        tables: Index in `classes` of each class of a part, or None if all indices stay the same.
        classes: Class names.
    """

    part: Tensor
    own: tuple[Classes, ...]
    tables: tuple[Tensor | None, ...]
    classes: Classes

    def __call__(self, sample: int, label: Any) -> Any:
        part = int(self.part[sample])
        names, table = self.own[part], self.tables[part]
        if label is None or table is None:
            return label
        if not 0 <= int(label) < len(names):
            raise DataError(f"sample {sample} has the label {label}, but its dataset has {len(names)} classes.")
        target = int(table[int(label)])
        if target < 0:
            raise unknown_class(names[int(label)], f"sample {sample}", self.classes)
        return target


# ---------------------------------------------------------------------- declarations


def class_names(dataset: Any) -> Classes | None:
    """Return the class names that a dataset declares, or None if it declares none.

    Raises:
        DataError: If its parts declare different ones.
    """
    if isinstance(dataset, Subset):
        return class_names(dataset.dataset)
    if isinstance(dataset, (ConcatDataset, ChainDataset)):
        own = [class_names(part) for part in dataset.datasets]
        if len({*own}) > 1:
            raise parts_disagree(own)
        return own[0] if own else None
    if getattr(dataset, "target_transform", None) is not None:
        return None  # `.classes` and `.targets` describe the targets before the transform
    names = getattr(dataset, "classes", None)
    if names is None and is_hugging_face(dataset):  # a stream may not know its features
        feature = (dataset.features or {}).get(label_key_of(dataset.column_names or ()) or "")
        names = getattr(feature, "names", None)
    names = _by_index(names)
    if not names:
        _check_wrapped(dataset)
        return None
    _check_index(names, getattr(dataset, "class_to_idx", None))
    # ImageNet's names are tuples of synonyms
    return tuple(normalized(", ".join(map(str, n)) if isinstance(n, (list, tuple)) else str(n)) for n in names)


def names_of_lists(dataset: Any) -> Classes | None:
    """Return the class names of a Hugging Face column with a list of class indices per sample, or None."""
    if not is_hugging_face(dataset):
        return None
    column = (dataset.features or {}).get(label_key_of(dataset.column_names or ()) or "")
    names = _by_index(getattr(getattr(column, "feature", None), "names", None))
    return tuple(normalized(str(name)) for name in names) or None


def _by_index(names: Any) -> list[Any]:
    """Return the class names by index that a list, an array, or a mapping from or to the index holds, or none."""
    if isinstance(names, Mapping):
        numbered = {k: name for key, value in names.items() for k, name in ((key, value), (value, key)) if _is_index(k)}
        return [numbered[k] for k in range(len(names))] if numbered.keys() == {*range(len(names))} else []
    names = names.tolist() if hasattr(names, "tolist") else names
    return list(names) if isinstance(names, (list, tuple)) else []


def _is_index(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_index(names: Sequence[Any], index: Any) -> None:
    """Check that the attributes `classes` and `class_to_idx` of a dataset number its classes alike.

    Raises:
        DataError: If they do not.
    """
    for k, name in enumerate(names):
        synonyms = name if isinstance(name, (list, tuple)) else (name,)
        other = next((index[each] for each in synonyms if each in index), k) if isinstance(index, Mapping) else k
        if other != k:
            raise DataError(
                f"The dataset numbers its classes in two ways: {name!r} is number {k} of its `classes`, and number "
                f"{other} in its `class_to_idx`. Correct one of them, or remove it."
            )


def _check_wrapped(dataset: Any) -> None:
    """Check that parts which a wrapper joins, or holds joined, number their classes alike, unless it renumbers them.

    Raises:
        DataError: If they do not, and the wrapper passes their labels on.
    """
    held = (value for value in getattr(dataset, "__dict__", {}).values() if value is not None)
    several = (value if isinstance(value, (list, tuple)) else [value] for value in held)
    parts = [part for values in several if isinstance(next(iter(values), None), Dataset) for part in values]
    try:
        joined: Any = ConcatDataset(parts)
    except (TypeError, AssertionError, NotImplementedError):  # none, a stream, or one without a length
        return
    inner = _Parts.of(joined)
    own = [class_names(leaf) for leaf in inner.leaves]
    if len({*own} - {None}) > 1 and len(joined) == len(dataset) and _passes_on(dataset, joined, inner):
        raise parts_disagree(own)


def _passes_on(dataset: Any, joined: Any, inner: _Parts) -> bool:
    """Return whether a wrapper gives the labels of the dataset in it: compared are some spread over each part."""
    for part in range(len(inner.leaves)):
        samples = (inner.part == part).nonzero().flatten()
        spread = evenly_spread(len(samples), _MAX_COMPARED)
        for index in samples[spread].tolist():
            with seeded("label", index):
                label, own = target_of(dataset[index]), target_of(joined[index])
            if own is None or not _same(label, own):
                return False
    return True


def parts_disagree(own: Sequence[Classes | None]) -> DataError:
    """Return the error for a dataset whose parts number their classes differently."""
    shown = " and ".join(dict.fromkeys("no names" if names is None else ", ".join(names[:5]) for names in own))
    return DataError(
        f"The parts of the dataset number their classes differently: {shown}. Pass the ConcatDataset itself, whose "
        f"parts are renumbered if all of them have names, or give all parts the same classes."
    )


def is_hugging_face(dataset: Any) -> bool:
    """Return whether a dataset has the interface of Hugging Face's `datasets.Dataset`."""
    return all(hasattr(dataset, name) for name in ("column_names", "features", "with_format"))


def _declared(dataset: Any) -> Any:
    """Return the labels of all samples that an attribute or a column holds: a tensor, a list of names, or None."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for attribute in ("targets", "labels"):
        labels = _as_labels(getattr(dataset, attribute, None), len(dataset))
        if labels is not None:
            return labels
    if is_hugging_face(dataset):
        key = label_key_of(dataset.column_names)
        # Without the user's transform, which would decode every image.
        return None if key is None else _as_labels(list(dataset.with_format(None)[key]), len(dataset))
    return None


def _as_labels(values: Any, length: int) -> Any:
    """Return `values` as int64 or float32 [N, ...], or as a list of N names, if they hold a label per sample."""
    scalar = isinstance(values, (np.ndarray, Tensor)) and values.ndim == 0
    if not isinstance(values, (Sequence, np.ndarray, Tensor)) or isinstance(values, str) or scalar:
        return None
    if len(values) != length:
        return None
    if all(isinstance(value, str) for value in values):
        return list(values)
    try:
        targets = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.array(values))
    except (TypeError, ValueError, RuntimeError):  # file names, boxes, ragged lists
        return None
    if targets.is_complex():
        return None
    return targets.float() if targets.is_floating_point() else targets.long()


def _agree(dataset: Any, declared: Any) -> bool:
    """Return whether the items have the declared labels: compared are one per label and some spread over the data."""
    spread = evenly_spread(len(declared), _MAX_COMPARED // 2)
    flat = declared.tolist() if isinstance(declared, Tensor) else declared
    firsts = list({str(label): index for index, label in reversed(list(enumerate(flat)))}.values())
    for index in dict.fromkeys([*spread, *firsts[: _MAX_COMPARED // 2]]):
        with seeded("label", index):
            label = target_of(dataset[index])
        if not _same(label, flat[index]):
            logger.warning(
                "The dataset declares the label %s for sample %d, but its item has %s. The labels of the items are "
                "used; those declared in `targets` or `labels` are not.",
                flat[index], index, label,
            )  # fmt: skip
            return False
    return True


def _typed_as(label: Any, declared: Any) -> Any:
    """Return declared numbers as whole or decimal ones, as the items have them. A column of pandas makes floats."""
    found = target_tensor(label)
    if found is None or not isinstance(declared, Tensor):
        return declared
    if found.is_floating_point():
        return declared.float()
    return declared.long() if bool((declared == declared.round()).all()) else None


def _same(label: Any, declared: Any) -> bool:
    if isinstance(label, str) or isinstance(declared, str):
        return bool(label == declared)
    found, expected = target_tensor(label), torch.as_tensor(declared)
    if found is None or found.numel() != expected.numel():
        return False
    return torch.allclose(found.flatten().double(), expected.flatten().double(), equal_nan=True)


@dataclass(frozen=True)
class _Parts:
    """The datasets inside `Subset` and `ConcatDataset`, and the sample of a part behind each sample.

    Attributes:
        leaves: The datasets, in order.
        rows: int64 [N], the position of each sample in the leaves, one after another.
    """

    leaves: tuple[Any, ...]
    rows: Tensor

    @classmethod
    def of(cls, dataset: Any) -> _Parts:
        if isinstance(dataset, Subset):
            inner = cls.of(dataset.dataset)
            return replace(inner, rows=inner.rows[torch.as_tensor(dataset.indices, dtype=torch.int64)])
        if isinstance(dataset, ConcatDataset):
            inner_parts = [cls.of(part) for part in dataset.datasets]
            starts = np.cumsum([0, *(sum(map(len, part.leaves)) for part in inner_parts)]).tolist()
            rows = [part.rows + start for part, start in zip(inner_parts, starts, strict=False)]
            return cls(tuple(leaf for part in inner_parts for leaf in part.leaves), torch.cat(rows))
        return cls((dataset,), torch.arange(len(dataset)))

    @property
    def part(self) -> Tensor:
        """Number of the leaf of each sample, int64 [N]."""
        ends = torch.tensor([len(leaf) for leaf in self.leaves]).cumsum(0)
        return torch.bucketize(self.rows, ends, right=True)

    def gathered(self, labels: list[Any]) -> Any:
        """Return the label of each sample from the labels of each leaf, or None if those of a leaf are unknown."""
        if any(part is None for part in labels) or len({type(part) for part in labels}) > 1:
            return None
        if isinstance(labels[0], list):
            every = [label for part in labels for label in part]
            return [every[row] for row in self.rows.tolist()]
        try:
            return torch.cat(labels)[self.rows]
        except RuntimeError:  # labels of different shapes
            return None
