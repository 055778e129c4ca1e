"""Read tables from CSV files and DataFrames, column by column, and those of every format by their suffix."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

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

_BYTES_PER_CHARACTER = 6  # of a CSV file, at most: its content, and its text
_ROWS_AT_ONCE = 512  # that become columns, fewer than Python's garbage collector lets gather before it looks at all
_MAX_SHARED = 1 << 16  # different cells of a column that later ones are compared with
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
    columns, first, ragged = _cells(text, found, path)
    if not first:
        return {}
    names = _names_without_header(first, columns)
    number = ragged.number if names is None else ragged.number + 1
    if names is None:
        names = first
        check_names(names, f"'{path}'")
    else:
        logger.warning("'%s' has no header row: its first row, %s, is read as a sample.", path, first)
        columns = [[cell, *cells] for cell, cells in zip(first, columns, strict=True)]
    if ragged.cells:
        raise DataError(
            f"'{path}', row {number} has {ragged.cells} cells. Expected {len(names)} ({shortened(', '.join(names))}). "
            f"The cells are delimited by {found!r}; for another, pass Table('{path}', delimiter=...)."
        )
    return {name: numbers_in(cells) for name, cells in zip(names, columns, strict=True)}


class _Ragged(NamedTuple):
    """The first row with another number of cells than the first: its number below the first, and its cells."""

    number: int = 0
    cells: int = 0


def _cells(text: str, delimiter: str, path: Path) -> tuple[list[list[str]], list[str], _Ragged]:
    """Return the columns of a CSV text without its first row, that row, and the first row that does not fit, if any.

    Raises:
        DataError: If it is no CSV.
    """
    reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    ragged, above = _Ragged(), 0
    try:
        first = [cell.strip() for cell in next(filter(None, reader), [])]
        check_width(len(first), f"'{path}', line {reader.line_num}", f" They are delimited by {delimiter!r}.")
        filled = _Filled(len(first))
        while rows := list(islice(reader, _ROWS_AT_ONCE)):
            full = list(filter(None, rows))  # without empty lines
            if not ragged.cells and {*map(len, full)} - {len(first)}:
                ragged = next(_Ragged(k, len(row)) for k, row in enumerate(full, above + 1) if len(row) != len(first))
            above += len(full)
            filled.add([row for row in full if len(row) == len(first)])
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
    return filled.columns, first, ragged


class _Filled:
    """Columns that are filled from rows. Equal cells, such as labels, are kept in memory once."""

    def __init__(self, width: int) -> None:
        self.columns: list[list[str]] = [[] for _ in range(width)]
        self._known: list[dict[str, str]] = [{} for _ in range(width)]

    def add(self, rows: list[list[str]]) -> None:
        for column, known, cells in zip(self.columns, self._known, zip(*rows, strict=True), strict=False):
            if len(known) > _MAX_SHARED:
                known.clear()
            column.extend(map(known.setdefault, cells, map(str.strip, cells)))


def _lines(text: str) -> Iterator[str]:
    """Return the lines of a text with their ends. A `StringIO` would take four bytes for each character."""
    return io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="")


def _decoded(path: Path) -> str:
    try:
        with opened(path) as file:
            check_memory(file.seek(0, os.SEEK_END) * _BYTES_PER_CHARACTER, path)
            file.seek(0)
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
    found = next(iter(candidates), ",")
    if len(candidates) > 1:
        found = next((mark for mark in candidates if _divides_evenly(text, mark)), found)
    if found not in ",\t":
        logger.info("Reading '%s' with the delimiter %r.", path, found)
    return found


def _divides_evenly(text: str, delimiter: str) -> bool:
    try:
        rows = csv.reader(_lines(text), delimiter=delimiter, strict=True)
        widths = (len(row) for row in rows if row)
        first = next(widths, None)
        return first is not None and first <= MAX_COLUMNS and all(width == first for width in widths)
    except csv.Error:
        return False


def _names_without_header(first: list[str], below: list[list[str]]) -> list[str] | None:
    """Return names for the columns if the first row is a sample like those below, or None if it is a header."""
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
