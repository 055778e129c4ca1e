"""Recognize the columns of a table: the path or text, the label, and the mark of the split."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.data.batch import label_key_of
from finetune.data.preprocessing.base import TextPair
from finetune.data.sources.folders import TRAIN_NAMES, VAL_NAMES, is_sample_file, part_of
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

_BOOLEANS = {**dict.fromkeys(("true", "1", "1.0", "yes"), True), **dict.fromkeys(("false", "0", "0.0", "no"), False)}
_SPLIT_KEYS = ("split", "set", "subset", "partition", "data_split", "dataset_split", "usage")
_TEST_NAMES = ("test", "testing")
_MAX_PARTS = 12
_MAX_LETTERS = 1_000  # of the name of a part
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
        DataError: If a flag such as `is_valid` is neither true nor false, or a part is unknown.
    """
    own = [name for name in columns if name not in others]
    flags = {name: flag for name in own if (flag := _flagged(columns[name], name, table))}
    if flags:
        # The first flag for another part than training decides.
        parts = [next((part for part in row if part != "train"), "train") for row in zip(*flags.values(), strict=True)]
        return list(flags), _as_marks(parts)
    for name in sorted(own, key=lambda name: name.lower() not in _SPLIT_KEYS):
        found = {cell: part_of(cell) for cell in _few(columns[name])}
        named = name.lower() in _SPLIT_KEYS
        if found and None not in found.values() and (named or _divide(name, found.values(), columns)):
            return [name], _as_marks([found[str(cell)] or "" for cell in columns[name]])
        strange = sorted(cell for cell, part in found.items() if part is None)
        if len(columns) > 2 and _divides_otherwise(name, found, strange, columns):
            raise DataError(
                f"The column {name!r} of {table} seems to divide the rows, but {', '.join(map(repr, strange))} is no "
                f"part that is known. Expected train, val and test. Replace the cells by these, or remove the "
                f"column to read all rows alike."
            )
    return [], None


def _flagged(cells: Sequence[Any], name: str, table: str) -> list[str]:
    """Return the part of each row by a flag such as `is_valid` or `is_training_img`, or nothing if it is no flag."""
    part = part_of(name[2:]) if name.lower().startswith("is") else None
    if part is None:
        return []
    flags = [_BOOLEANS.get(str(cell).strip().lower()) for cell in cells]
    if None not in flags:
        usual = "train" if part not in TRAIN_NAMES else "val"
        return [part if flag else usual for flag in flags]
    if part in VAL_NAMES and part not in _TEST_NAMES:
        row = flags.index(None)
        raise DataError(f"Row {row + 1} of {table} has {cells[row]!r} in the column {name!r}. Expected True or False.")
    return []


def _few(cells: Sequence[Any]) -> set[str]:
    """Return the different cells of a column, or nothing if they are too many to be parts of the data."""
    found: set[str] = set()
    seen: set[int] = set()
    for cell in cells:
        if id(cell) in seen:  # a cell that many rows share may be huge
            continue
        seen.add(id(cell))
        found.add(str(cell))
        if len(found) > _MAX_PARTS or len(str(cell)) > _MAX_LETTERS:
            return set()
    return found


def _divide(name: str, parts: Collection[str | None], columns: Columns) -> bool:
    """Return whether a column of another name, such as `phase`, names parts of the data rather than classes."""
    several = {*parts} & {*TRAIN_NAMES} and {*parts} - {*TRAIN_NAMES}
    return bool(several) and len(columns) > 2 and label_key_of([name.lower()]) is None


def _divides_otherwise(name: str, found: Mapping[str, str | None], strange: Sequence[str], columns: Columns) -> bool:
    """Return whether a column divides the rows, but not into known parts alone."""
    parts = [part for part in found.values() if part is not None]
    if name.lower() in _SPLIT_KEYS and (parts or {*strange} <= {"0", "1", "2"}):
        return len(found) > 1
    return 0 < len(strange) < 3 and name.lower() not in (*PATH_KEYS, *TEXT_NAMES) and _divide(name, parts, columns)


def _as_marks(parts: Sequence[str]) -> Tensor:
    validates = {*parts} & ({*VAL_NAMES} - {*_TEST_NAMES})
    test = TEST if validates else VALIDATION  # as with folders
    marks = [TRAINING if part in TRAIN_NAMES else test if part in _TEST_NAMES else VALIDATION for part in parts]
    return torch.tensor(marks, dtype=torch.int64)
