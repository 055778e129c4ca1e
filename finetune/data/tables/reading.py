"""Read tables from CSV files and DataFrames, column by column, and those of every format by their suffix."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data.sources.folders import is_sample_file
from finetune.data.sources.labels import numbers_in
from finetune.data.tables.limits import BYTES_PER_CELL, MAX_COLUMNS, check_memory, check_names, check_width
from finetune.data.tables.parquet import read_parquet
from finetune.errors import DataError
from finetune.files.regular import opened
from finetune.naming.paths import shortened

logger = logging.getLogger("finetune")

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

# Formats of tables that are not read, and how to read them.
OTHER_TABLES = {
    ".xlsx": 'Save it as CSV in the spreadsheet, or pass `pandas.read_excel("{}")`.',
    ".xls": 'Save it as CSV in the spreadsheet, or pass `pandas.read_excel("{}")`.',
    ".json": 'Pass `pandas.read_json("{}")`.',
    ".jsonl": 'Pass `pandas.read_json("{}", lines=True)`.',
    ".feather": 'Pass `pandas.read_feather("{}")`.',
    ".arrow": 'Pass `datasets.Dataset.from_file("{}")`.',
    ".txt": "If it is a table, rename it to .csv.",
}

Columns = dict[str, Sequence[Any]]

_BYTES_PER_CHARACTER = 6  # of a CSV file: its content, its text, and the buffer that is parsed
_DELIMITERS = ",\t;|"
_INDEX_NAMES = ("", "unnamed: 0", "__index_level_0__", "index")  # as pandas writes its row numbers

# Encodings besides UTF-8. A text is in one of them if its core, in which a letter with an accent and the one after it
# are no character, has these characters.
_ENCODINGS = (
    ("cp949", "euc_kr", "[가-힣]", "Korean"),
    ("cp932", "cp932", "[ぁ-ヿ]", "Japanese"),
    ("gb18030", "gb2312", "[一-鿿]", "Chinese"),
)


def read_table(path: Path, delimiter: str | None = None) -> Columns:
    """Read a CSV or Parquet file.

    Raises:
        DataError: If the file cannot be read.
    """
    read = read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path, delimiter)
    columns = {name: cells for name, cells in read.items() if not _is_index(name, cells)}
    if not any(map(len, columns.values())):
        raise DataError(
            f"'{path}' is empty. Expected a header row, then one row per sample with a path or text and a label."
        )
    return columns


def is_frame(data: Any) -> bool:
    """Return whether `data` is a DataFrame of pandas or polars."""
    return all(hasattr(data, name) for name in ("columns", "to_numpy", "__getitem__"))


def columns_of(frame: Any) -> Columns:
    """Return the columns of a DataFrame.

    Raises:
        DataError: If two columns have the same name.
    """
    names = [str(name) for name in frame.columns]
    check_names(names, "The DataFrame")
    columns = {name: list(frame[key].to_numpy().tolist()) for name, key in zip(names, frame.columns, strict=True)}
    return {name: [None if _is_missing(cell) else cell for cell in cells] for name, cells in columns.items()}


def _is_missing(cell: Any) -> bool:
    """Return whether a cell of pandas is NA, NaT or NaN."""
    return type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and math.isnan(cell))


def _read_csv(path: Path, delimiter: str | None) -> Columns:
    text = _decoded(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"'{path}', line {line} has a null character, so it is no text. Save the table as UTF-8 text.")
    found = delimiter or _delimiter_of(text, path)
    check_memory((text.count(found) + text.count("\n") + 1) * BYTES_PER_CELL, path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=found, strict=True)
    rows = []
    try:
        for row in reader:
            check_width(len(row), f"'{path}', line {reader.line_num}", f" They are delimited by {found!r}.")
            if row:
                rows.append(row)
    except csv.Error as error:  # e.g. a quote that is never closed and would swallow all later rows
        if "field larger than" in str(error):
            raise DataError(
                f"'{path}', line {reader.line_num} has a cell of more than {csv.field_size_limit():,} characters. "
                "Close a quote that is left open, or call csv.field_size_limit() with a higher number."
            ) from error
        raise DataError(
            f"'{path}', line {reader.line_num} cannot be read as CSV: {error}. Put cells that hold a quote or the "
            "delimiter in quotes, and double the quotes inside."
        ) from error
    if not rows:
        return {}
    rows = [[cell.strip() for cell in row] for row in rows]
    names = _names_without_header(rows)
    if names is None:
        names = rows.pop(0)
        check_names(names, f"'{path}'")
    else:
        logger.warning("'%s' has no header row: its first row, %s, is read as a sample.", path, rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise DataError(
                f"'{path}', row {number} has {len(row)} cells. Expected {len(names)} ({shortened(', '.join(names))}). "
                f"The cells are delimited by {found!r}; for another, pass Table('{path}', delimiter=...)."
            )
    return {name: numbers_in([row[k] for row in rows]) for k, name in enumerate(names)}


def _decoded(path: Path) -> str:
    try:
        with opened(path) as file:
            check_memory(os.fstat(file.fileno()).st_size * _BYTES_PER_CHARACTER, path)
            content = file.read()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error}.") from error
    try:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # as spreadsheets save "Unicode text"
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        names = _encodings_of(content)
        shown = " or ".join(f"{name} ({language})" for name, language in names.items())
        raise DataError(
            f"'{path}' is not UTF-8 text ({error}). It may be {shown} text. Save it with UTF-8 encoding, or pass "
            f"`pandas.read_csv('{path}', encoding='{next(iter(names))}')`."
        ) from error


def _encodings_of(content: bytes) -> dict[str, str]:
    """Return the encodings that a text may have, and their languages."""
    found = {}
    for name, core, letters, language in _ENCODINGS:
        try:
            if content.decode(name) and re.search(letters, content.decode(core, errors="ignore")):
                found[name] = language
        except UnicodeDecodeError:
            continue
    return {**found, "cp1252": "Western European"}


def _delimiter_of(text: str, path: Path) -> str:
    """Return the delimiter that divides every row into the same number of cells, or else the most frequent one."""
    first = text.partition("\n")[0]
    candidates = sorted((mark for mark in _DELIMITERS if mark in first), key=first.count, reverse=True)
    found = next((mark for mark in candidates if _divides_evenly(text, mark)), None)
    found = found or next(iter(candidates), ",")
    if found not in ",\t":
        logger.info("Reading '%s' with the delimiter %r.", path, found)
    return found


def _divides_evenly(text: str, delimiter: str) -> bool:
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        widths = (len(row) for row in rows if row)
        first = next(widths, None)
        return first is not None and first <= MAX_COLUMNS and all(width == first for width in widths)
    except csv.Error:
        return False


def _names_without_header(rows: list[list[str]]) -> list[str] | None:
    """Return names for the columns if the first row is a sample like the others, or None if it is a header."""
    first, others = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    below = [[row[k] for row in others] for k in range(len(first))]
    files = next((k for k, cell in enumerate(first) if is_sample_file(cell)), None)
    columns = list(zip(first, below, strict=True))
    numbers = any(_is_number(cell) and cells and all(map(_is_number, cells)) for cell, cells in columns)
    repeated = len(first) == 2 and any(cells.count(cell) > 1 for cell, cells in columns)
    if files is None and not numbers and not repeated:
        return None
    if len(first) != 2:
        return [f"column {k}" for k in range(1, len(first) + 1)]
    if files is not None:
        return ["path", "label"] if files == 0 else ["label", "path"]
    kinds = [_is_number(cell) for cell in first]
    label_first = kinds[0] if kinds[0] != kinds[1] else len({*below[0]}) < len({*below[1]})
    return ["label", "text"] if label_first else ["text", "label"]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_index(name: str, cells: Sequence[Any]) -> bool:
    """Return whether a column holds the row numbers that pandas writes."""
    return name.lower() in _INDEX_NAMES and all(str(cell) == str(k) for k, cell in enumerate(cells))
