"""CSV and Parquet files that list a picture's path and its label, one picture a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.base import PictureFiles, label_key_of
from finetune.data.labels import Classes, encode, numbers_in
from finetune.data.pictures import is_picture_file
from finetune.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

PATH_KEYS = (
    "path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path", "imagepath",
    "img", "img_path", "image_file", "picture", "images", "paths", "files",
)  # fmt: skip

Table = dict[str, Sequence[Any]]


def open_table(path: Path, classes: Classes | None, labelled: bool) -> PictureFiles:
    """Open a table of path and label. Relative paths are relative to the table's own folder.

    The columns are found by their usual names, or are the only two. Several numeric columns called
    `label_...` or `target_...` are one regression target each.

    Raises:
        DataError: an unreadable file, columns that can't be told, missing pictures or labels, or a
            class the training data doesn't have.
    """
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    path_column, label_columns = _find_columns(path, table, labelled)
    pictures = [path.parent / str(cell) for cell in table[path_column]]
    _check_pictures(path, pictures)
    if not labelled:
        return PictureFiles(pictures, folder=path)

    def name(row: int) -> str:
        return f"'{pictures[row]}' (row {row + 1} of '{path}')"

    if len(label_columns) == 1:
        targets, names = encode(table[label_columns[0]], classes, name)
        return PictureFiles(pictures, targets, names, path)
    return PictureFiles(pictures, _numeric(path, table, label_columns), None, path)


def _read_csv(path: Path) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}' is not UTF-8 text ({error}). Save it as CSV with UTF-8 encoding."
        ) from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    if not rows:
        raise DataError(f"'{path}' is empty. Expected a row of column names, then a path and a label a row.")
    header = [cell.strip() for cell in rows[0]]
    if any(is_picture_file(cell) for cell in header):  # no header: the first row is a sample already
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


def _find_columns(path: Path, table: Table, labelled: bool) -> tuple[str, list[str]]:
    """Return the column of paths and the column, or columns, of labels."""
    lower = {column.lower(): column for column in table}
    paths = next((lower[key] for key in PATH_KEYS if key in lower), None) or _column_of_files(table)
    label = label_key_of(lower)
    rest = [column for column in table if column != paths]
    several = [column for column in rest if column.lower().startswith(("label_", "target_"))]
    if paths is not None and not labelled:
        return paths, []
    if paths is not None and label is not None:
        return paths, [lower[label]]
    if paths is not None and len(rest) == 1:
        return paths, rest
    if paths is not None and len(several) > 1:
        return paths, several
    raise DataError(
        f"Cannot tell which columns of '{path}' are the picture's path and its label; it has "
        f"{', '.join(table)}. Call them 'path' and 'label'. (For a table of numbers, give the pair (X, y).)"
    )


def _column_of_files(table: Table) -> str | None:
    """Return the first column whose first cell is the name of a picture file."""
    return next((c for c, cells in table.items() if len(cells) and is_picture_file(str(cells[0]))), None)


def _check_pictures(path: Path, pictures: list[Path]) -> None:
    missing = [row for row, picture in enumerate(pictures) if not picture.is_file()]
    if missing:
        shown = ", ".join(f"'{pictures[row]}' (row {row + 1})" for row in missing[:5])
        raise DataError(
            f"'{path}' names {len(missing)} of {len(pictures)} pictures that do not exist: {shown}. "
            f"Paths are relative to '{path.parent}'."
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
