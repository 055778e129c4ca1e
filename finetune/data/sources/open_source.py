"""From whatever the user has to one kind of source: a folder, a table, arrays, a data set, a loader."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from finetune.data.preprocessing.base import SOUND, TEXT, TextPair, kind_of
from finetune.data.sources.base import Arrays, Loader, MapDataset, Source, Stream
from finetune.data.sources.datasets import check_same_numbers, open_dataset, open_loader, open_stream
from finetune.data.sources.files import Files, PictureFiles, RawItems, files, is_raw_file
from finetune.data.sources.folders import find_split, missing_path, open_folder
from finetune.data.sources.labels import Classes, class_targets
from finetune.data.sources.picture_files import SUFFIXES
from finetune.data.sources.sound_files import WAVE_SUFFIXES
from finetune.data.sources.tables import TABLE_SUFFIXES, open_table
from finetune.data.splitting import split
from finetune.errors import DataError

__all__ = [
    "Arrays", "Files", "Loader", "MapDataset", "PictureFiles", "RawItems", "Source", "Stream",
    "find_split", "open_source", "split",
]  # fmt: skip

_ACCEPTED = (
    "Accepted are: a folder with one folder per class; a CSV or Parquet file of path, or text, and "
    "label; a pair (X, y) of tensors, arrays or lists; a map-style or iterable Dataset; a DataLoader; a Hugging Face "
    "dataset"
)
_ACCEPTED_UNLABELLED = "; and to predict also a picture's path, a list of paths, a folder of pictures, or X alone."


def open_source(
    data: Any, *, classes: Sequence[str] | None = None, labelled: bool = True, takes: str | None = None
) -> Source:
    """Open the user's data, in any of the forms the package accepts.

    Args:
        data: a folder with one folder per class; a CSV or Parquet file of path and label; a pair
            (X, y) of tensors, arrays or lists, X [N, ...], y [N] or [N, K]; a map-style or iterable
            Dataset; a DataLoader; a Hugging Face dataset. Without labels also one picture's path, a
            list of paths, a folder of pictures, or X alone. Files may be sound (`.wav`) too. X may be
            texts or, where waveforms are taken, 1-d arrays or a float array [N, T].
        classes: the training data's classes, for validation data: targets are indices into these.
        labelled: False to predict. Files and arrays then give their inputs alone; the items of a data
            set or loader stay as they are.
        takes: the kind of raw item that the preprocessing takes. It decides what could be either: with
            "text" every str in a list is a text and never a path, and a str alone is one too unless it
            ends as a table does; a `Path` is always a path. Otherwise the first str of a list decides:
            they are paths if it ends as a picture or sound file does, or exists, else texts.

    Returns:
        The source; nothing but the file lists and the targets is read yet.

    Raises:
        DataError: a missing path, a form that is not accepted, labels that are missing, that differ
            in number from the inputs, or that name a class not in `classes`.
    """
    known = None if classes is None else tuple(classes)
    if isinstance(data, Source):
        check_same_numbers(data.classes, known, "The source")
        return data
    if isinstance(data, str) and takes == TEXT and not data.lower().endswith(TABLE_SUFFIXES):
        data = [data]
    if isinstance(data, (str, os.PathLike)):
        return _open_path(Path(data).expanduser(), known, labelled, takes)
    if isinstance(data, DataLoader):
        return open_loader(data, known)
    if isinstance(data, IterableDataset):
        return open_stream(data, known)
    source = _open_in_memory(data, known, labelled, takes)
    if source is not None:
        return source
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, dict):
        return open_dataset(data, known, labelled, takes)
    accepted = _ACCEPTED + ("." if labelled else _ACCEPTED_UNLABELLED)
    raise DataError(f"Data of type {type(data).__name__} cannot be used. {accepted}")


def _open_in_memory(data: Any, classes: Classes | None, labelled: bool, takes: str | None) -> Source | None:
    """Open arrays and lists, as a pair or alone; None for what is neither."""
    if hasattr(data, "to_numpy"):  # a column of pandas or polars
        data = data.to_numpy()
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors  # gathered in one call
    if _is_pair(data) and not _are_two_waveforms(data, takes):
        return _open_pair(data[0], data[1] if labelled else None, classes, takes)
    if _is_texts(data, takes):
        return _open_unlabelled(data, labelled, f"Texts alone have no labels: {_shown(data)}", takes)
    if isinstance(data, (Tensor, np.ndarray)):
        what = f"X alone has no labels: an array of shape {tuple(data.shape)}"
        return _open_unlabelled(data, labelled, what, takes)
    if _is_paths(data):
        return _open_paths(data, labelled)
    if not labelled and _is_rows(data):
        return _open_pair(data, None, classes, takes)
    return None


def _open_path(path: Path, classes: Classes | None, labelled: bool, takes: str | None) -> Source:
    if not path.exists():
        raise missing_path(path)
    if path.is_dir():
        return open_folder(path, classes, labelled, takes)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return open_table(path, classes, labelled, takes)
    if is_raw_file(path):
        return _open_paths([path], labelled)
    raise DataError(
        f"'{path}' is neither a table ({', '.join(TABLE_SUFFIXES)}) nor a picture ({', '.join(SUFFIXES)}) nor "
        f"sound ({', '.join(WAVE_SUFFIXES)}). {_ACCEPTED}."
    )


def _open_paths(paths: Sequence[str | os.PathLike[str]], labelled: bool) -> Files:
    if labelled:
        raise DataError(
            f"Paths alone have no labels: {_shown(paths)}. Give the pair (paths, labels), a folder with one "
            "folder per class, or a CSV file of path and label."
        )
    found = [Path(path).expanduser() for path in paths]
    for file in found:
        if not file.exists():
            raise missing_path(file)
    return files(found)


def _open_pair(inputs: Any, labels: Any, classes: Classes | None, takes: str | None) -> Source:
    """Open (X, y), or X alone where `labels` is None."""
    if labels is not None and len(inputs) != len(labels):
        raise DataError(
            f"The pair (X, y) has {len(inputs)} inputs and {len(labels)} labels. Expected one label an input."
        )
    inputs = inputs.to_numpy() if hasattr(inputs, "to_numpy") else inputs
    kind = _raw_kind(inputs, takes)
    paths = kind is None and _is_paths(inputs)

    def name(index: int) -> str:
        return f"'{inputs[index]}'" if paths else f"sample {index}"

    targets, names = (None, classes) if labels is None else class_targets(labels, classes, name)
    if paths:
        return files(_open_paths(inputs, labelled=False).paths, targets, names)
    if kind == TEXT:
        inputs = [TextPair(*text) if isinstance(text, (tuple, list)) else text for text in inputs]
    if kind is not None:
        return RawItems(inputs, kind, targets, names)
    return Arrays(_as_inputs(inputs), targets, names)


def _raw_kind(inputs: Any, takes: str | None) -> str | None:
    """Return the kind of raw item that X holds, None for paths and for inputs that are ready."""
    if _is_texts(inputs, takes):
        return TEXT
    first = inputs[0] if len(inputs) else None
    return None if isinstance(first, str) else kind_of(first, takes)


def _open_unlabelled(inputs: Any, labelled: bool, what: str, takes: str | None) -> Source:
    if labelled:
        raise DataError(f"{what}. Give the pair (X, y), y one a sample.")
    return _open_pair(inputs, None, None, takes)


def _as_inputs(inputs: Any) -> Tensor | np.ndarray:
    """Return a tensor that shares memory with `inputs` where it can; a memory map stays one."""
    if isinstance(inputs, Tensor):
        return inputs
    if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], Tensor):
        try:
            return torch.stack(list(inputs))
        except RuntimeError as error:
            raise DataError(f"The tensors of X do not have one shape: {error}. Pad or crop them.") from error
    try:
        array = inputs if isinstance(inputs, np.ndarray) else np.asarray(inputs)
        if array.dtype.kind not in "biufc":
            raise ValueError(f"its dtype is {array.dtype}")
    except ValueError as error:
        raise DataError(f"X is not an array of numbers: {error}. Expected shape [N, ...].") from error
    shares = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    if isinstance(array, np.memmap) or not shares:
        return array
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


def _is_pair(data: Any) -> bool:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    if isinstance(data, list):  # a list of two is a pair only where it can't be two samples
        return all(isinstance(part, (Tensor, np.ndarray)) and part.ndim > 0 for part in data)
    return all(hasattr(part, "__len__") and not isinstance(part, (str, dict)) for part in data)


def _are_two_waveforms(data: Any, takes: str | None) -> bool:
    return isinstance(data, list) and takes == SOUND and all(kind_of(part, takes) for part in data)


def _is_paths(data: Any) -> bool:
    return (
        isinstance(data, (list, tuple)) and len(data) > 0 and all(isinstance(path, (str, os.PathLike)) for path in data)
    )


def _is_texts(data: Any, takes: str | None) -> bool:
    """Whether `data` is a list of texts, or of pairs of them; of what could be paths, see `open_source`."""
    if isinstance(data, np.ndarray) and data.dtype.kind in "UO":
        data = data.tolist()
    if type(data) not in (list, tuple) or not data:  # a subclass may be a data set, and to load from it costs
        return False
    if takes == TEXT and all(isinstance(row, (tuple, list)) for row in data):
        return all(len(row) == 2 and all(isinstance(text, str) for text in row) for row in data)
    if not isinstance(data[0], str):
        return False
    return takes == TEXT or not (is_raw_file(data[0]) or _exists(data[0]))


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, or with characters that none can have
        return False


def _is_rows(data: Any) -> bool:
    """Whether `data` is the X of a prediction as a list: of arrays, of lists, or of numbers."""
    return isinstance(data, list) and bool(data) and isinstance(data[0], (Tensor, np.ndarray, list, int, float))


def _shown(paths: Sequence[Any]) -> str:
    return ", ".join(f"'{path}'" for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
