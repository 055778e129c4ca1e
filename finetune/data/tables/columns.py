"""Recognize the columns of a table: the path or text, the label, and the mark of the split."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.data.batch import label_key_of
from finetune.data.preprocessing.base import TextPair
from finetune.data.sources.folders import TRAIN_NAMES, VAL_NAMES, is_sample_file
from finetune.data.tables.reading import Columns
from finetune.errors import DataError

logger = logging.getLogger("finetune")

PATH_KEYS = (
    "path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path", "imagepath",
    "img", "img_path", "image_file", "picture", "images", "paths", "files", "audio", "audio_path", "wav",
)  # fmt: skip

TEXT_KEYS = (
    "text", "sentence", "review", "content", "comment", "tweet", "message", "document", "article", "headline",
    "utterance", "question", "query", "texts", "sentences", "description", "body", "title",
)  # fmt: skip

PAIR_KEYS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"),
    ("text_a", "text_b"), ("question", "sentence"), ("question", "context"), ("question", "passage"),
    ("query", "passage"), ("query", "document"),
)  # fmt: skip

# Names of columns that hold texts.
TEXT_NAMES = {*TEXT_KEYS, *(name for pair in PAIR_KEYS for name in pair)}

# Part of a row whose flag is true, and of one whose flag is false. The first flag for another part than training
# decides.
_FLAGS = {
    "is_test": ("test", "train"), "is_valid": ("val", "train"), "is_val": ("val", "train"),
    "is_validation": ("val", "train"), "is_train": ("train", "val"), "is_training": ("train", "val"),
}  # fmt: skip
_BOOLEANS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_SPLIT_KEYS = ("split", "set", "subset", "partition", "data_split", "dataset_split")
_TEST_NAMES = ("test", "testing")
TRAINING, VALIDATION, TEST = range(3)


def text_columns(first: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the text column, the two columns of a text pair, or nothing if the names are ambiguous.

    Columns are recognized by their usual names. A single column of strings beside the label counts as well.

    Args:
        first: First cell of each column.
    """
    strings = {name.lower(): name for name, cell in first.items() if isinstance(cell, str)}
    label = label_key_of(strings)
    named = [key for key in TEXT_KEYS if key in strings]
    pair = next((pair for pair in PAIR_KEYS if set(pair) <= strings.keys()), None)
    if pair is not None and "text" not in strings:
        return strings[pair[0]], strings[pair[1]]
    others = [
        key for key, name in strings.items() if key not in (label, *PATH_KEYS) and not is_sample_file(first[name])
    ]
    found = named[:1] or (others if len(others) == 1 else [])
    unused = [strings[key] for key in others if key not in found]
    if found and unused and label is not None:  # else one of them may be the label
        ignored = ", ".join(map(repr, unused))
        logger.warning("Reading texts from column %r; ignored: %s.", strings[found[0]], ignored)
    return tuple(strings[key] for key in found)


def texts_of(columns: Sequence[Sequence[Any]]) -> list[Any]:
    """Return one text per row for one column, or a text pair per row for two. Missing cells stay None."""
    cells = [[cell if cell is None else str(cell) for cell in column] for column in columns]
    return cells[0] if len(cells) == 1 else [TextPair(*row) for row in zip(*cells, strict=True)]


def marks_of(columns: Columns, table: str, others: Collection[str] = ()) -> tuple[list[str], Tensor | None]:
    """Return the columns that mark rows for training, validation or test, and int64 [N], or none.

    Those are flags such as `is_valid`, or a column of parts such as `train` and `val`.

    Args:
        columns: Cells of each column.
        table: Name of the table in an error message.
        others: Columns that hold the inputs or the labels.

    Raises:
        DataError: If a flag such as `is_valid` is neither true nor false.
    """
    lower = {name.lower(): name for name in columns if name not in others}
    flags = {lower[key]: _flagged(columns[lower[key]], key, table) for key in _FLAGS if key in lower}
    flags = {name: parts for name, parts in flags.items() if parts}
    if flags:
        parts = [next((part for part in row if part != "train"), "train") for row in zip(*flags.values(), strict=True)]
        return list(flags), _as_marks(parts)
    for name in (lower[key] for key in sorted(lower, key=lambda key: key not in _SPLIT_KEYS)):
        parts = [str(cell).strip().lower() for cell in columns[name]]
        if {*parts} <= {*TRAIN_NAMES, *VAL_NAMES} and (name.lower() in _SPLIT_KEYS or _divide(name, parts, columns)):
            return [name], _as_marks(parts)
    return [], None


def _flagged(cells: Sequence[Any], key: str, table: str) -> list[str]:
    """Return the part of each row by a flag, or nothing if the column is no flag."""
    flags = [_BOOLEANS.get(str(cell).strip().lower()) for cell in cells]
    if None not in flags:
        return [_FLAGS[key][0 if flag else 1] for flag in flags]
    if _FLAGS[key][0] == "val":
        row = flags.index(None)
        raise DataError(f"Row {row + 1} of {table} has {cells[row]!r} in the column {key!r}. Expected True or False.")
    return []


def _divide(name: str, parts: list[str], columns: Columns) -> bool:
    """Return whether a column of another name, such as `phase`, names parts of the data rather than classes."""
    several = {*parts} & {*TRAIN_NAMES} and {*parts} - {*TRAIN_NAMES}
    return bool(several) and len(columns) > 2 and label_key_of([name.lower()]) is None


def _as_marks(parts: list[str]) -> Tensor:
    validates = {*parts} & ({*VAL_NAMES} - {*_TEST_NAMES})
    test = TEST if validates else VALIDATION  # as with folders
    marks = [TRAINING if part in TRAIN_NAMES else test if part in _TEST_NAMES else VALIDATION for part in parts]
    return torch.tensor(marks, dtype=torch.int64)
