"""Map-style datasets of torch, torchvision and Hugging Face, and any list of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from finetune.data.batch import label_key_of, target_of, with_target
from finetune.data.preprocessing.base import IMAGE, SOUND, TEXT, is_image_cell, kind_of
from finetune.data.randomness import seeded
from finetune.data.sources.base import Request, Source, type_name
from finetune.data.sources.dataset_labels import class_names, is_hugging_face, names_of_lists, open_labels
from finetune.data.sources.image_files import read_image_cell
from finetune.data.sources.items import RawItems
from finetune.data.sources.labels import Classes
from finetune.data.tables.columns import text_columns, texts_of
from finetune.errors import DataError


@dataclass(frozen=True)
class ItemForm:
    """How an item of a dataset or stream becomes a sample.

    Attributes:
        kind: Kind of raw item of the inputs, or None if they are ready for the model.
        input_key: Key of the input in items that are dicts, which become pairs. None to keep items as they are.
        label_key: Key of the label in such items, or None if they have no label.
    """

    kind: str | None = None
    input_key: str | None = None
    label_key: str | None = None

    @classmethod
    def of(cls, first: Any, takes: str | None) -> ItemForm:
        """Return the form of items like the first one, for a preprocessing that takes a kind of raw item."""
        if not isinstance(first, dict):
            return cls(_kind_of(first[0] if isinstance(first, (tuple, list)) and first else first, takes))
        key = _input_key(first, takes)
        return cls(None if key is None else _kind_of(first[key], takes), key, label_key_of(first))

    def __call__(self, item: Any) -> Any:
        """Return an item as a sample."""
        if self.input_key is not None:
            value = self._decoded(item[self.input_key])
            return value if self.label_key is None else (value, item[self.label_key])
        if self.kind is None or not isinstance(item, (tuple, list)):
            return self._decoded(item)
        return (self._decoded(item[0]), *item[1:])

    def _decoded(self, value: Any) -> Any:
        """Return an image from a cell of a Hugging Face column that is not decoded, or another value unchanged."""
        return read_image_cell(value) if self.kind == IMAGE and is_image_cell(value) else value


class MapDataset(Source):
    """A map-style dataset from the user. Its items are unchanged except for their labels.

    Args:
        dataset: Any object with a length and items by index.
        targets: int64 [N] or float [N, ...], or None if they are unknown without reading the inputs.
        classes: Class names by index, those of the training data if known.
        renumber: Function of a sample's index and label that returns its target, or None to keep all labels.
        form: How items become samples.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        targets: Tensor | None = None,
        classes: Classes | None = None,
        renumber: Callable[[int, Any], Any] | None = None,
        form: ItemForm = ItemForm(),
    ) -> None:
        self.dataset = dataset
        self.targets = targets
        self.classes = classes
        self.renumber = renumber
        self.form = form
        self.kind = form.kind
        self.collate_fn = getattr(dataset, "collate_fn", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.form(self.dataset[index])
        label = target_of(item)
        target = label if self.renumber is None else self.renumber(index, label)
        return item if target is label else with_target(item, target)

    def describe(self) -> Iterator[Any]:
        yield type_name(self.dataset)
        yield len(self)


def open_dataset(dataset: Any, request: Request) -> Source:
    """Open a map-style dataset.

    Items are unchanged except for raw items (PIL images, Hugging Face audio columns and, if the preprocessing takes
    them, texts and 1-d arrays) and labels: class indices are renumbered if the training data numbers its classes
    differently, and names become class indices.

    Args:
        dataset: Any object with a length and items by index.
        request: Settings for opening it.

    Raises:
        DataError: If a class is unknown to the training data, or texts have no labels.
    """
    takes = request.takes
    dataset = without_tensors(dataset)
    first = _first_item(dataset)
    if takes == TEXT and isinstance(first, dict) and is_hugging_face(dataset):
        columns = () if _is_tokenized(first) else text_columns(first)
        if columns:
            return _open_texts(dataset, columns, request)
    labels = open_labels(dataset, target_of(first), request)
    return MapDataset(
        dataset,
        targets=labels.targets,
        classes=labels.classes,
        renumber=labels.renumber,
        form=ItemForm.of(first, takes),
    )


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
    meaning = request.meaning
    own, several = class_names(dataset), names_of_lists(dataset)
    meaning.check_numbering(own)
    labels = list(plain[label])
    if several is not None:
        labels = [[several[k] for k in row] for row in labels]
        meaning = replace(meaning, classes=several if meaning.classes is None else meaning.classes)
    if own is not None and meaning.names:  # a class index stands for its name
        labels = [own[k] if isinstance(k, int) and 0 <= k < len(own) else None for k in labels]
        meaning = replace(meaning, classes=own if meaning.classes is None else meaning.classes)
    targets, names = meaning.encode(labels, source.name)
    return RawItems(texts, TEXT, targets, names)


def without_tensors(dataset: Any) -> Any:
    """Return a Hugging Face dataset with its images and audio as raw items, which `with_format` made to tensors."""
    if not is_hugging_face(dataset) or not dataset.features:
        return dataset
    given = getattr(dataset, "format", None) or {}
    raw = any(type(feature).__name__ in ("Image", "Audio") for feature in dataset.features.values())
    return dataset.with_format(None) if raw and given.get("type") != "custom" else dataset


def _first_item(dataset: Any) -> Any:
    """Read one item, or return None if there is none. Random transforms leave the global generators unchanged."""
    if len(dataset) == 0:
        return None
    with seeded("first item"):
        return dataset[0]
