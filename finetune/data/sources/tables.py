"""CSV and Parquet files with a label a row, and the path of a picture or sound, or a text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.preprocessing.base import TEXT, TextPair
from finetune.data.sources.base import Source, label_key_of
from finetune.data.sources.columns import PATH_KEYS, text_columns
from finetune.data.sources.files import RawItems, files, is_raw_file
from finetune.data.sources.labels import Classes, encode, numbers_in
from finetune.data.sources.picture_files import is_picture_file
from finetune.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

Table = dict[str, Sequence[Any]]


def open_table(path: Path, classes: Classes | None, labelled: bool, takes: str | None) -> Source:
    """Open a table of path and label, or of text and label. Relative paths are relative to its own folder.

    The columns are found by their usual names, or are the only two. Several numeric columns called
    `label_...` or `target_...` are one regression target each. Two columns such as `premise` and
    `hypothesis` are a pair of texts. Where there are paths and texts, `takes` decides.

    Raises:
        DataError: an unreadable file, columns that can't be told, missing files or labels, or a
            class the training data doesn't have.
    """
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    columns, kind = _input_columns(path, table, takes)
    paths = [path.parent / str(cell) for cell in table[columns[0]]] if kind is None else []
    if kind is None:
        _check_files(path, paths)

    def name(row: int) -> str:
        return f"'{paths[row]}' (row {row + 1} of '{path}')" if paths else f"row {row + 1} of '{path}'"

    targets, names = _targets(path, table, columns, classes, name) if labelled else (None, None)
    if kind is None:
        return files(paths, targets, names, path)
    return RawItems(texts_of([table[column] for column in columns]), kind, targets, names, table=path)


def texts_of(columns: Sequence[Sequence[Any]]) -> list[Any]:
    """Return one text a row of one column, or a pair of texts a row of two; what is missing stays None."""
    cells = [[cell if cell is None else str(cell) for cell in column] for column in columns]
    return cells[0] if len(cells) == 1 else [TextPair(*row) for row in zip(*cells, strict=True)]


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
    except csv.Error as error:  # as a quote that is never closed, which would swallow the rows behind it
        raise DataError(
            f"'{path}', line {reader.line_num} cannot be read as CSV: {error}. Put cells that hold a quote or the "
            "delimiter in quotes, and double the quotes inside."
        ) from error
    if not rows:
        raise DataError(f"'{path}' is empty. Expected a row of column names, then a path or text and a label a row.")
    header = [cell.strip() for cell in rows[0]]
    if any(is_raw_file(cell) for cell in header):  # no header: the first row is a sample already
        header = [f"column {k}" for k in range(1, len(header) + 1)]
    else:
        del rows[0]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(
                f"'{path}', row {number} has {len(row)} cells; expected {len(header)} ({', '.join(header)})."
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
    """Return the column of paths and None, or the column or columns of text and their kind."""
    texts = text_columns({name: next(filter(None, cells), "") for name, cells in table.items()})
    lower = {column.lower(): column for column in table}
    paths = next((lower[key] for key in PATH_KEYS if key in lower), None) or _column_of_files(table)
    if paths is not None and not (takes == TEXT and texts):
        return (paths,), None
    if texts:
        return texts, TEXT
    raise DataError(
        f"Cannot tell which columns of '{path}' are the picture's path, or the text, and the label; it has "
        f"{', '.join(table)}. Call them 'path', or 'text', and 'label'. (For a table of numbers, give the pair "
        "(X, y).)"
    )


def _column_of_files(table: Table) -> str | None:
    """Return the first column whose first cell is the name of a picture or sound file."""
    return next((c for c, cells in table.items() if len(cells) and is_raw_file(str(cells[0]))), None)


def _check_files(path: Path, paths: list[Path]) -> None:
    missing = [row for row, file in enumerate(paths) if not file.is_file()]
    if missing:
        noun = "pictures" if is_picture_file(paths[missing[0]]) else "files"
        shown = ", ".join(f"'{paths[row]}' (row {row + 1})" for row in missing[:5])
        raise DataError(
            f"'{path}' names {len(missing)} of {len(paths)} {noun} that do not exist: {shown}. "
            f"Paths are relative to '{path.parent}'."
        )


def _targets(
    path: Path, table: Table, inputs: tuple[str, ...], classes: Classes | None, name: Callable[[int], str]
) -> tuple[Tensor, Classes | None]:
    """Return the targets in the column of labels, or in the several columns of numbers."""
    rest = [column for column in table if column not in inputs]
    label = label_key_of([column.lower() for column in rest])
    several = [column for column in rest if column.lower().startswith(("label_", "target_"))]
    labels = [column for column in rest if column.lower() == label] or rest
    if len(labels) == 1:
        return encode(table[labels[0]], classes, name)
    if len(several) > 1:
        return _numeric(path, table, several), None
    raise DataError(
        f"Cannot tell which column of '{path}' is the label; beside {' and '.join(map(repr, inputs))} it has "
        f"{', '.join(rest) or 'none'}. Call it 'label'."
    )


def _numeric(path: Path, table: Table, columns: list[str]) -> Tensor:
    try:
        values = np.array([table[column] for column in columns], dtype=np.float32).T
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The label columns {', '.join(columns)} of '{path}' are not all numbers ({error}). "
            "Call the one column of class names 'label'."
        ) from error
    return torch.from_numpy(np.ascontiguousarray(values))
