"""CSV and Parquet files with the path of a file, or a text, and a label per row."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.batch import label_key_of
from finetune.data.preprocessing.base import TEXT, TextPair
from finetune.data.sources.base import Request, Source
from finetune.data.sources.folders import is_sample_file, open_files
from finetune.data.sources.image_files import ImageFiles
from finetune.data.sources.items import RawItems
from finetune.data.sources.labels import Classes, Meaning, numbers_in
from finetune.errors import DataError
from finetune.naming.unicode import normalized

logger = logging.getLogger("finetune")

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

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

Table = dict[str, Sequence[Any]]


def open_table(path: Path, request: Request) -> Source:
    """Open a table of path and label, or of text and label. Paths are relative to the folder of the table.

    Columns are recognized by their usual names, or because there are only two. Several numeric columns called
    `label_...` or `target_...` are one regression target each. Two columns such as `premise` and `hypothesis` form a
    text pair. If the table has both paths and texts, the preprocessing decides.

    Raises:
        DataError: If the file cannot be read, its columns are ambiguous, files or labels are missing, or a class is
            unknown to the training data.
    """
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    columns, kind = _input_columns(path, table, request.takes)
    paths = [path.parent / str(cell) for cell in table[columns[0]]] if kind is None else []
    if kind is None:
        _check_files(path, paths)

    def name(row: int) -> str:
        return f"'{paths[row]}' (row {row + 1} of '{path}')" if paths else f"row {row + 1} of '{path}'"

    targets, names = _targets(path, table, columns, request.meaning, name) if request.labeled else (None, None)
    if kind is None:
        return open_files(paths, targets, names, path)
    return RawItems(texts_of([table[column] for column in columns]), kind, targets, names, table=path)


def texts_of(columns: Sequence[Sequence[Any]]) -> list[Any]:
    """Return one text per row for one column, or a text pair per row for two. Missing cells stay None."""
    cells = [[cell if cell is None else str(cell) for cell in column] for column in columns]
    return cells[0] if len(cells) == 1 else [TextPair(*row) for row in zip(*cells, strict=True)]


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
    if found and unused:
        ignored = ", ".join(map(repr, unused))
        logger.warning("Reading texts from column %r; ignored: %s.", strings[found[0]], ignored)
    return tuple(strings[key] for key in found)


def _read_csv(path: Path) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text ({error}). Save it as CSV with UTF-8 encoding.") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:  # e.g. a quote that is never closed and would swallow all later rows
        raise DataError(
            f"'{path}', line {reader.line_num} cannot be read as CSV: {error}. Put cells that hold a quote or the "
            "delimiter in quotes, and double the quotes inside."
        ) from error
    if not rows:
        raise DataError(
            f"'{path}' is empty. Expected a header row, then one row per sample with a path or text and a label."
        )
    header = [cell.strip() for cell in rows[0]]
    if any(is_sample_file(cell) for cell in header):  # no header: the first row is a sample
        header = [f"column {k}" for k in range(1, len(header) + 1)]
    else:
        del rows[0]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(
                f"'{path}', row {number} has {len(row)} cells. Expected {len(header)} ({', '.join(header)})."
            )
    columns = {name: [row[k].strip() for row in rows] for k, name in enumerate(header)}
    return {name: numbers_in(cells) for name, cells in columns.items()}


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"'{path}' is a Parquet file; reading it needs pyarrow. "
            "Run `pip install torch-finetune[parquet]`, or save the table as CSV."
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{path}' cannot be read as Parquet: {error}") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _input_columns(path: Path, table: Table, takes: str | None) -> tuple[tuple[str, ...], str | None]:
    """Return the column of paths and None, or the column or columns of texts and their kind."""
    texts = text_columns({name: next(filter(None, cells), "") for name, cells in table.items()})
    lower = {column.lower(): column for column in table}
    paths = next((lower[key] for key in PATH_KEYS if key in lower), None) or _column_of_files(table)
    if paths is not None and not (takes == TEXT and texts):
        return (paths,), None
    if texts:
        return texts, TEXT
    raise DataError(
        f"Cannot tell which columns of '{path}' are the path or text and the label. Its columns are "
        f"{', '.join(table)}. Rename them to 'path' or 'text', and 'label'. For a table of numbers, pass the pair "
        "(X, y)."
    )


def _column_of_files(table: Table) -> str | None:
    """Return the first column whose first cell is the name of an image or audio file."""
    return next((c for c, cells in table.items() if len(cells) and is_sample_file(str(cells[0]))), None)


def _check_files(path: Path, paths: list[Path]) -> None:
    missing = [row for row, file in enumerate(paths) if not file.is_file()]
    if missing:
        noun = "images" if ImageFiles.matches(paths[missing[0]]) else "files"
        shown = ", ".join(f"'{paths[row]}' (row {row + 1})" for row in missing[:5])
        raise DataError(
            f"'{path}' names {len(missing)} of {len(paths)} {noun} that do not exist: {shown}. "
            f"Paths are relative to '{path.parent}'."
        )


def _targets(
    path: Path, table: Table, inputs: tuple[str, ...], meaning: Meaning, name: Callable[[int], str]
) -> tuple[Tensor, Classes | None]:
    """Return the targets in the column of labels, or in several columns of numbers, and the names of the outputs."""
    rest = [column for column in table if column not in inputs]
    label = label_key_of([column.lower() for column in rest])
    several = [column for column in rest if column.lower().startswith(("label_", "target_"))]
    labels = [column for column in rest if column.lower() == label] or rest
    if len(labels) == 1:
        return meaning.encode(table[labels[0]], name)
    if len(several) > 1:
        columns = _columns_of_training(path, several, meaning.classes)
        return _numeric(path, table, columns), tuple(map(normalized, columns))
    raise DataError(
        f"Cannot tell which column of '{path}' is the label. Besides {' and '.join(map(repr, inputs))} it has "
        f"{', '.join(rest) or 'none'}. Rename the column to 'label'."
    )


def _columns_of_training(path: Path, columns: list[str], known: Classes | None) -> list[str]:
    """Return the label columns in the order of training, by their names.

    Raises:
        DataError: If a column is missing, or training had no such column.
    """
    if known is None:
        return columns
    found = {normalized(column): column for column in columns}
    if found.keys() != {*known}:
        raise DataError(
            f"The label columns of '{path}' are {', '.join(found)}, but those of the training data are "
            f"{', '.join(known)}. Give both files the same label columns."
        )
    return [found[name] for name in known]


def _numeric(path: Path, table: Table, columns: list[str]) -> Tensor:
    cells = [table[column] for column in columns]
    whole = all(isinstance(cell, int) for column in cells for cell in column)
    try:
        values = np.array(cells, dtype=np.int64 if whole else np.float32).T
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The label columns {', '.join(columns)} of '{path}' are not all numbers ({error}). "
            "Rename the column of class names to 'label'."
        ) from error
    return torch.from_numpy(np.ascontiguousarray(values))
