"""`open_source` opens data in any form, by the table of forms that it recognizes."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from finetune.data.batch import label_key_of
from finetune.data.preprocessing.base import IMAGE, SOUND, TEXT, TextPair, is_image_cell, kind_of
from finetune.data.sources.arrays import Arrays, Group, as_inputs, native
from finetune.data.sources.base import Request, Source
from finetune.data.sources.datasets import open_dataset
from finetune.data.sources.folders import (
    FILE_SOURCES,
    data_path,
    is_sample_file,
    matching_files,
    missing_path,
    open_files,
    open_folder,
)
from finetune.data.sources.items import EncodedImages, RawItems
from finetune.data.sources.labels import Meaning, check_numbering
from finetune.data.sources.streams.loader import open_loader
from finetune.data.sources.streams.stream import open_stream
from finetune.data.tables.open_table import open_table
from finetune.data.tables.reading import OTHER_TABLES, TABLE_SUFFIXES, is_frame
from finetune.data.tables.table import Table
from finetune.distributed.world import ALONE, World
from finetune.errors import DataError
from finetune.files.listing import Located, located
from finetune.naming.paths import existing, exists, shortened

_ACCEPTED = (
    "Expected a folder with one subfolder per class; a CSV or Parquet file with a path or text and a label per row, a "
    "DataFrame or a Table; a "
    "pair (X, y) of tensors, arrays or lists; a map-style or iterable Dataset; a DataLoader; or a Hugging Face "
    "dataset"
)
_ACCEPTED_UNLABELED = "; for predict also the path of an image, a list of paths, a folder of images, or X alone."


def open_source(
    data: Any,
    *,
    classes: Sequence[str] | None = None,
    labeled: bool = True,
    takes: str | None = None,
    meaning: Meaning | None = None,
    double: bool = False,
    seed: int = 0,
    epoch: int = 0,
    world: World = ALONE,
) -> Source:
    """Open data in any of the forms that the package accepts.

    Only the list of files and the targets are read.

    With `takes="text"`, every str in a list is a text, and so is a single str unless it has the suffix of a table.
    Otherwise the first str of a list decides: if it has the suffix of an image or audio file, or exists, all are paths,
    else texts. A `Path` is always a path.

    Args:
        data: A folder with one subfolder per class; a CSV or Parquet file of path and label; a pair (X, y) of tensors,
            arrays or lists, X [N, ...], y [N] or [N, K]; a map-style or iterable Dataset; a DataLoader; a Hugging
            Face dataset; a `Source`. Without labels also a path, a list of paths, a folder of files, or X alone.
            Files are images or audio (`.wav`). X may hold texts or, if the preprocessing takes waveforms, 1-d
            arrays or a float array [N, T].
        classes: Classes of the training data, which targets index. None derives them from the data.
        labeled: Whether labels are needed. Without them, files and arrays return only inputs; the items of a
            dataset or DataLoader are unchanged.
        takes: Kind of raw item that the preprocessing takes.
        meaning: Meaning of the labels, in place of `classes`.
        double: Whether float64 arrays stay as they are, because the model computes in float64.
        seed: Seed of the random draws of a stream.
        epoch: Epoch of the first pass over a stream.
        world: Processes that read the data together.

    Returns:
        The source.

    Raises:
        DataError: If a path does not exist, the form is not accepted, or labels are missing, differ in number from
            the inputs, or name a class that is not one of `classes`.
    """
    meaning = meaning or Meaning(None if classes is None else tuple(classes))
    request = Request(meaning, labeled, takes, double, seed, epoch, world)
    if not _is_table(data, request):
        data = _plain_column(data)
    if type(data) in (tuple, list) and len(data) == 2:
        data = type(data)(map(_buffered, data))
    elif type(data) is dict:
        frames = {label_key_of(data)} & {name for name, values in data.items() if is_frame(values)}
        data = {name: values if name in frames else _plain_column(values) for name, values in data.items()}
    for recognizes, opener in _FORMS:
        if recognizes(data, request):
            return opener(data, request)
    if isinstance(data, Mapping) and data and all(map(_has_items, data.values())):
        raise DataError(
            f"Data of type {type(data).__name__} has the parts {', '.join(map(repr, data))}. Expected one data set. "
            f"Pass one of them, such as data[{next(iter(data))!r}]."
        )
    if hasattr(data, "__next__"):
        raise DataError(
            f"Data of type {type(data).__name__} can be read only once, and training reads it in every epoch. Pass the "
            f"DataLoader or dataset itself, the pair (X, y), or a list of samples."
        )
    accepted = _ACCEPTED + ("." if labeled else _ACCEPTED_UNLABELED)
    raise DataError(f"Data of type {type(data).__name__} cannot be used. {accepted}")


# ---------------------------------------------------------------------- openers


def _open_opened(data: Source, request: Request) -> Source:
    check_numbering(data.classes, request.meaning, "The source")
    return data


def _open_path(data: str | os.PathLike[str], request: Request) -> Source:
    path = existing(data_path(data))
    if path is None:
        if re.match(r"(https?|ftp)://", str(data), re.IGNORECASE):
            raise DataError(
                f"'{shortened(data)}' is a URL. Download it first, for example with "
                "`urllib.request.urlretrieve(url, file)`, and pass the path of the file."
            )
        if _is_pattern(data):
            return _open_paths(matching_files(data_path(data)), request)
        raise missing_path(data_path(data))
    if path.is_dir():
        return open_folder(path, request)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return open_table(path, request)
    if is_sample_file(path):
        return _open_paths([path], request)
    if path.suffix.lower() in OTHER_TABLES:
        way = OTHER_TABLES[path.suffix.lower()].format(path)
        raise DataError(f"'{path}' cannot be read. {way} Tables are read from {', '.join(TABLE_SUFFIXES)} files.")
    kinds = " nor ".join(f"a {source.noun} ({', '.join(source.suffixes)})" for source in FILE_SOURCES)
    raise DataError(f"'{path}' is neither a table ({', '.join(TABLE_SUFFIXES)}) nor {kinds}. {_ACCEPTED}.")


def _open_paths(data: Sequence[str | os.PathLike[str]], request: Request) -> Source:
    if request.labeled:
        raise DataError(
            f"Paths alone have no labels: {_shown(data)}. Pass the pair (paths, labels), a folder with one "
            "subfolder per class, or a CSV file of path and label."
        )
    return open_files(_existing(data), takes=request.takes)


def _open_item(data: Any, request: Request) -> Source:
    """Open one image, as a PIL image, an array [H, W, C], or the content of a file."""
    _require_no_labels(request, "An image alone has no label")
    return _open_items([data], request)


def _open_items(data: Sequence[Any], request: Request) -> Source:
    _require_no_labels(request, "Images alone have no labels")
    return _open_inputs(data, None, request)


def _open_tensor_dataset(data: TensorDataset, request: Request) -> Source:
    return _open_pair(data.tensors, request)


def _open_pair(data: Sequence[Any], request: Request) -> Source:
    inputs, labels = data
    if not request.labeled:
        return _open_inputs(inputs, None, request, _parts(inputs, len(labels)))
    labels = _checked_labels(labels)
    parts = _parts(inputs, len(labels))
    number = len(_dense(inputs)) if parts is None else len(labels)
    if number != len(labels):
        raise DataError(f"The pair (X, y) has {number} inputs and {len(labels)} labels. Expected one label per input.")
    return _open_inputs(inputs, labels, request, parts)


def _checked_labels(labels: Any) -> Any:
    """Return y with arrays in a dtype that torch has.

    Raises:
        DataError: If y is neither numbers nor names.
    """
    labels = _dense(labels, "y")
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind not in "biufcUSO":
            raise DataError(f"The labels have the dtype {labels.dtype}. Expected numbers or names, one per sample.")
        return native(labels, double=True)
    return labels


def _dense(values: Any, name: str = "X") -> Any:
    """Return values that hold every entry.

    Raises:
        DataError: If the values are sparse, nested or on the meta device, or entries are masked.
    """
    if isinstance(values, Tensor) and values.is_meta:
        raise DataError(f"{name} is on the meta device, so it has no values. Expected a tensor with values.")
    if isinstance(values, Tensor) and values.is_nested and values.layout is torch.strided:
        raise DataError(f"{name} is a nested tensor. Expected a dense one. Pass {name}.to_padded_tensor(0).")
    if isinstance(values, Tensor) and values.layout is not torch.strided and not values.is_nested:
        raise DataError(f"{name} is a sparse tensor. Expected a dense one. Pass {name}.to_dense().")
    if hasattr(values, "toarray") and not isinstance(values, np.ndarray):
        raise DataError(f"{name} is a sparse {type(values).__name__}. Expected an array. Pass {name}.toarray().")
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        missing = int(np.ma.getmaskarray(values).sum())
        raise DataError(f"{name} has {missing} masked values. Expected every value. Pass {name}.filled(0).")
    for position, value in enumerate(values if isinstance(values, (list, tuple)) else ()):
        if isinstance(value, (Tensor, np.ndarray)) and (value.ndim > 0 or value is np.ma.masked):
            _dense(value, f"{name}[{position}]")
    if isinstance(values, np.ndarray) and values.ndim == 0:
        raise DataError(f"{name} is a single value. Expected an array of shape [N, ...].")
    return values


def _open_named(data: Mapping[str, Any], request: Request) -> Source:
    """Open a dict of arrays, with the labels under one of the usual keys or with none."""
    label = label_key_of(data)
    inputs = {name: values for name, values in data.items() if name != label}
    if not request.labeled:
        return _open_inputs(inputs, None, request)
    if label is None:
        raise DataError(f"The arrays {', '.join(map(repr, data))} have no labels. Pass the pair (X, y) or a 'label'.")
    return _open_pair((inputs, data[label]), request)


def _parts(inputs: Any, length: int | None = None) -> dict[str, Any] | tuple[Any, ...] | None:
    """Return X as several arrays of the same samples, or None if it is one array."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    several = isinstance(inputs, (tuple, list)) and length not in (None, len(inputs))
    if several and inputs and all(isinstance(part, (Tensor, np.ndarray)) and len(part) == length for part in inputs):
        return tuple(inputs)
    return None


def _open_group(parts: Any, labels: Any, request: Request) -> Group:
    def opened(part: Any) -> Arrays:
        source = _open_inputs(part, None, request)
        if not isinstance(source, Arrays):
            raise DataError("X holds several arrays, of which one is not numbers. Expected arrays of numbers [N, ...].")
        return source

    named = isinstance(parts, dict)
    group: Any = {name: opened(part) for name, part in parts.items()} if named else tuple(map(opened, parts))
    lengths = {name: len(part) for name, part in (group.items() if named else enumerate(group))}
    if len({*lengths.values(), *([] if labels is None else [len(labels)])}) != 1:
        raise DataError(f"The arrays of X differ in length: {lengths}. Expected one row per sample in each.")
    targets, classes = (None, request.classes)
    if labels is not None:
        targets, classes = request.meaning.targets_of(labels, "sample {}".format)
    return Group(group, targets, classes)


def _open_text(data: str, request: Request) -> Source:
    return _open_texts([data], request)


def _open_texts(data: Any, request: Request) -> Source:
    _require_no_labels(request, f"Texts alone have no labels: {_shown(data)}")
    return _open_inputs(data, None, request)


def _open_array(data: Tensor | np.ndarray, request: Request) -> Source:
    _require_no_labels(request, f"X alone has no labels: an array of shape {tuple(data.shape)}")
    return _open_inputs(data, None, request)


def _open_rows(data: list[Any], request: Request) -> Source:
    return _open_inputs(data, None, request)


def _open_inputs(inputs: Any, labels: Any, request: Request, parts: Any = None) -> Source:
    """Open X with the labels y, or with none if they are None."""
    parts = _parts(inputs) if parts is None else parts
    if parts is not None:
        return _open_group(parts, labels, request)
    inputs = _dense(_plain_column(inputs))
    if isinstance(inputs, (list, tuple)) and inputs and all(_is_encoded(item, request) for item in inputs):
        inputs = EncodedImages(inputs)
    kind = IMAGE if isinstance(inputs, EncodedImages) else _raw_kind(inputs, request)
    paths = kind is None and _are_paths(inputs, request)

    def name(index: int) -> str:
        return f"'{inputs[index]}'" if paths else f"sample {index}"

    targets, classes = (None, request.classes) if labels is None else request.meaning.targets_of(labels, name)
    if paths:
        return open_files(_existing(inputs), targets, classes, takes=request.takes)
    if kind == TEXT:
        inputs = [TextPair(*text) if isinstance(text, (tuple, list)) else text for text in inputs]
    if kind is not None:
        return RawItems(inputs, kind, targets, classes)
    return Arrays(as_inputs(inputs, double=request.double), targets, classes, double=request.double)


def _plain_column(values: Any) -> Any:
    """Return a column of pandas or polars as an array, and one of strings or other objects as a list."""
    plain = values.to_numpy() if hasattr(values, "to_numpy") else _buffered(values)
    dtypes = np.atleast_1d(getattr(values, "dtypes", "O"))
    numbers = all(getattr(dtype, "kind", "O") in "biuf" for dtype in dtypes)
    if isinstance(plain, np.ndarray) and plain.dtype.kind == "O" and numbers:
        plain = values.to_numpy(dtype=np.float64, na_value=np.nan)
    return plain.tolist() if isinstance(plain, np.ndarray) and plain.dtype.kind in "UO" and plain.ndim == 1 else plain


def _buffered(values: Any) -> Any:
    """Return values that only other libraries' protocols give access to as an array; others are unchanged."""
    if isinstance(values, (memoryview, array)):
        return np.asarray(values)
    if hasattr(values, "__len__") or kind_of(values) is not None or isinstance(values, type):
        return values
    if hasattr(values, "__array__"):
        return np.asarray(values)
    return torch.utils.dlpack.from_dlpack(values) if hasattr(values, "__dlpack__") else values


def _existing(paths: Sequence[str | os.PathLike[str]]) -> Located:
    """Return the files and folders that paths name.

    Raises:
        DataError: If one does not exist.
    """
    texts = list(map(os.fsdecode, paths))
    found = located(texts, lambda head: str(data_path(head)), lambda text: existing(data_path(text)))
    if found.missing:
        raise missing_path(data_path(texts[found.missing[0]]))
    return found


def _require_no_labels(request: Request, problem: str) -> None:
    if request.labeled:
        raise DataError(f"{problem}. Pass the pair (X, y), with one y per sample.")


def _raw_kind(inputs: Any, request: Request) -> str | None:
    """Return the kind of raw item that X holds, or None if X holds paths or is ready for the model."""
    if _are_texts(inputs, request):
        return TEXT
    first = inputs[0] if len(inputs) else None
    return None if isinstance(first, str) else kind_of(first, request.takes)


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(f"'{value}'" for value in values[:3]) + (", ..." if len(values) > 3 else "")


# ---------------------------------------------------------------------- recognizers


def _is_source(data: Any, request: Request) -> bool:
    return isinstance(data, Source)


def _is_text(data: Any, request: Request) -> bool:
    return isinstance(data, str) and request.takes == TEXT and not data.lower().endswith(TABLE_SUFFIXES)


def _is_pattern(data: Any) -> bool:
    return isinstance(data, (str, Path)) and has_magic(str(data))


def _is_table(data: Any, request: Request) -> bool:
    """Return whether `data` is a table. A DataFrame of numbers alone is the X of a prediction."""
    if not is_frame(data):
        return isinstance(data, Table)
    return request.labeled or np.asarray(data.to_numpy()).dtype.kind not in "fiub"


def _is_item(data: Any, request: Request) -> bool:
    """Return whether `data` is one image: of PIL, the content of a file, or bytes [H, W, C] for an image model."""
    return isinstance(data, Image.Image) or (_is_encoded(data, request) and not (_is_bitmap(data) and request.labeled))


def _are_items(data: Any, request: Request) -> bool:
    return isinstance(data, list) and bool(data) and all(_is_encoded(item, request) for item in data)


def _is_encoded(item: Any, request: Request) -> bool:
    """Return whether `item` becomes an image: the content of a file, or bytes [H, W, C] for an image model."""
    return _is_content(item) or (request.takes == IMAGE and (_is_bitmap(item) or is_image_cell(item)))


def _is_content(item: Any) -> bool:
    """Return whether `item` is the content of a file, or a file that is open."""
    return isinstance(item, (bytes, bytearray)) or (hasattr(item, "read") and hasattr(item, "seek"))


def _is_bitmap(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (1, 3, 4)


def _is_path(data: Any, request: Request) -> bool:
    return isinstance(data, (str, os.PathLike))


def _is_loader(data: Any, request: Request) -> bool:
    return isinstance(data, DataLoader)


def _is_stream(data: Any, request: Request) -> bool:
    return isinstance(data, IterableDataset)


def _is_tensor_dataset(data: Any, request: Request) -> bool:
    return isinstance(data, TensorDataset) and len(data.tensors) == 2


def _is_pair(data: Any, request: Request) -> bool:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    if isinstance(data, tuple):
        sized = (hasattr(part, "__len__") and not isinstance(part, str) for part in data)
        return all(sized) and not isinstance(data[1], Mapping)
    # A list of two is a pair only if it cannot be two samples: those to predict have no labels.
    arrays = all(isinstance(part, (Tensor, np.ndarray)) and part.ndim > 0 for part in data)
    return request.labeled and arrays and not (request.takes == SOUND and all(kind_of(part, SOUND) for part in data))


def _is_named(data: Any, request: Request) -> bool:
    """Return whether `data` is a dict of arrays or columns."""
    if not isinstance(data, Mapping) or not data:
        return False
    return all(isinstance(values, (Tensor, np.ndarray, list, tuple)) or is_frame(values) for values in data.values())


def _are_texts(data: Any, request: Request) -> bool:
    """Return whether `data` is a list of texts or of pairs of texts, by the rules in `open_source`."""
    if isinstance(data, np.ndarray) and data.dtype.kind in "UO":
        data = data.tolist()
    if type(data) not in (list, tuple) or not data:  # a subclass may be a dataset, whose items are expensive to read
        return False
    if request.takes == TEXT and all(isinstance(row, (tuple, list)) for row in data):
        return all(len(row) == 2 and all(isinstance(text, str) for text in row) for row in data)
    if not isinstance(data[0], str):
        return False
    return request.takes == TEXT or not (request.takes is not None or is_sample_file(data[0]) or exists(data[0]))


def _is_array(data: Any, request: Request) -> bool:
    return isinstance(data, (Tensor, np.ndarray))


def _are_paths(data: Any, request: Request) -> bool:
    paths = isinstance(data, (list, tuple)) and len(data) > 0
    return paths and all(isinstance(path, (str, os.PathLike)) for path in data)


def _are_rows(data: Any, request: Request) -> bool:
    """Return whether `data` is the X of a prediction as a list of arrays, lists or numbers."""
    rows = isinstance(data, list) and bool(data) and not request.labeled
    return rows and isinstance(data[0], (Tensor, np.ndarray, list, int, float))


def _is_dataset(data: Any, request: Request) -> bool:
    return hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, dict)


def _has_items(data: Any) -> bool:
    return hasattr(data, "__iter__") or hasattr(data, "__getitem__")


# ---------------------------------------------------------------------- forms

# A recognizer and an opener for each form of data. The first match wins.
_FORMS: tuple[tuple[Callable[[Any, Request], bool], Callable[[Any, Request], Source]], ...] = (
    (_is_source, _open_opened),
    (_is_text, _open_text),
    (_is_table, open_table),
    (_is_item, _open_item),
    (_are_items, _open_items),
    (_is_path, _open_path),
    (_is_loader, open_loader),
    (_is_stream, open_stream),
    (_is_tensor_dataset, _open_tensor_dataset),
    (_is_pair, _open_pair),
    (_is_named, _open_named),
    (_are_texts, _open_texts),
    (_is_array, _open_array),
    (_are_paths, _open_paths),
    (_are_rows, _open_rows),
    (_is_dataset, open_dataset),
)
