"""Recognize the columns of a table: the path or text, the label, and the mark of the split."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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

_VALIDATION_FLAGS = ("is_valid", "is_val", "is_validation")
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


def marks_of(columns: Columns, table: str) -> tuple[str, Tensor] | None:
    """Return the column that marks rows for training, validation or test, and int64 [N], or None if there is none.

    Raises:
        DataError: If a flag such as `is_valid` is neither true nor false.
    """
    lower = {name.lower(): name for name in columns}
    flag = next((lower[key] for key in _VALIDATION_FLAGS if key in lower), None)
    if flag is not None:
        known = {
            "true": VALIDATION,
            "1": VALIDATION,
            "1.0": VALIDATION,
            "false": TRAINING,
            "0": TRAINING,
            "0.0": TRAINING,
        }
        marks = [known.get(str(cell).strip().lower()) for cell in columns[flag]]
        if None in marks:
            row = marks.index(None)
            raise DataError(
                f"Row {row + 1} of {table} has {columns[flag][row]!r} in the column {flag!r}. Expected True or False."
            )
        return flag, torch.tensor(marks, dtype=torch.int64)
    split = next((lower[key] for key in _SPLIT_KEYS if key in lower), None)
    if split is None:
        return None
    names = [str(cell).strip().lower() for cell in columns[split]]
    if not {*names} <= {*TRAIN_NAMES, *VAL_NAMES}:
        return None
    validates = {*names} & ({*VAL_NAMES} - {*_TEST_NAMES})
    test = TEST if validates else VALIDATION  # as with folders
    marks = [TRAINING if name in TRAIN_NAMES else test if name in _TEST_NAMES else VALIDATION for name in names]
    return split, torch.tensor(marks, dtype=torch.int64)
