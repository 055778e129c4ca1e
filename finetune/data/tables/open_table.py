"""Open a table of a path or text and a label per row."""

from __future__ import annotations

import ast
import logging
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finetune.data.batch import label_key_of
from finetune.data.preprocessing.base import TEXT
from finetune.data.sources.base import Request, Source
from finetune.data.sources.files import EncodedFiles
from finetune.data.sources.folders import data_path, is_sample_file, open_files
from finetune.data.sources.image_files import ImageFiles
from finetune.data.sources.items import RawItems
from finetune.data.sources.labels import Classes, columns_of_training
from finetune.data.sources.sound_files import SoundFiles
from finetune.data.tables.columns import PATH_KEYS, TEXT_NAMES, marks_of, text_columns, texts_of
from finetune.data.tables.listed_files import ListedFiles
from finetune.data.tables.reading import Columns, columns_of, is_frame, read_table
from finetune.data.tables.table import Table
from finetune.display.left_out import left_out
from finetune.errors import DataError, nearest, some_of
from finetune.files.listing import Located
from finetune.files.paths import Paths
from finetune.naming.paths import existing, shortened
from finetune.naming.unicode import normalized

logger = logging.getLogger("finetune")

# Cells that stand for a missing label beside names, as spreadsheets, pandas and databases write it.
_MISSING = ("na", "n/a", "#n/a", "nan", "none", "null", "<na>", "nil", "\\n")
_SEPARATORS = "|;, "


def open_table(data: Any, request: Request) -> Source:
    """Open a `Table`, the path of a CSV or Parquet file, or a DataFrame.

    Paths are relative to the folder of the file, unless the table names another. Columns are recognized by their usual
    names, or because there are only two. Several numeric columns called `label_...` or `target_...` are one regression
    target each. Two columns such as `premise` and `hypothesis` form a text pair. If the table has both paths and texts,
    the preprocessing decides. A column such as `is_valid` or `split` marks the rows for validation.

    Raises:
        DataError: If the file cannot be read, its columns are ambiguous, files or labels are missing, or a class is
            unknown to the training data.
    """
    table = data if isinstance(data, Table) else Table(data)
    path, columns = _read(table)
    rows = _Rows(path, table, columns, request)
    targets, names = rows.targets() if request.labeled else (None, None)
    source = rows.source(targets, names)
    source.notes = (*source.notes, *rows.notes)
    return source


def _read(table: Table) -> tuple[Path, Columns]:
    """Return the path of a table, or a name for a DataFrame, and its columns."""
    if is_frame(table.data):
        return Path("DataFrame"), columns_of(table.data)
    path = data_path(table.data)
    found = existing(path)
    if found is None:
        raise DataError(f"The table '{shortened(path)}' does not exist. Correct its path.")
    return found, read_table(found, table.delimiter)


class _Rows:
    """The rows of a table, with the meaning of its columns."""

    def __init__(self, path: Path, table: Table, columns: Columns, request: Request) -> None:
        self.path = path
        self.given = "frame" if is_frame(table.data) else repr(str(path))  # as an error repeats it
        self.table = table
        self.request = request
        folder = path.parent if table.folder is None else data_path(table.folder)
        if not folder.is_dir():
            raise DataError(f"The folder '{folder}' of the table '{path}' does not exist. Correct its path.")
        self.files = ListedFiles(folder)
        named = [column for part in table.columns or () for column in ([part] if isinstance(part, str) else part)]
        marked, self.marks = marks_of(columns, f"'{path}'", named)
        self.columns = {name: cells for name, cells in columns.items() if name not in marked}
        self.notes: list[str] = []
        self.inputs, self.kind = self._inputs()
        self.paths = Paths()
        self.located = Located(self.paths)
        self.contents: list[bytes] = []
        if self.kind is None:
            self._find_items(self.columns[self.inputs[0]])

    def name(self, row: int) -> str:
        where = f"row {row + 1} of '{self.path}'"
        return f"'{self.paths[row]}' ({where})" if self.paths else where

    def source(self, targets: Tensor | None, names: Classes | None) -> Source:
        """Return the inputs with the targets of each row, [rows, ...] or None. A row that names a folder is several."""
        if self.paths:
            files = open_files(self.located, targets, names, self.path, takes=self.request.takes, name=self.name)
            files.marks = self.marks if files.rows is None or self.marks is None else self.marks[files.rows]
            return files
        items = self._items(targets, names)
        items.marks = self.marks
        return items

    def _items(self, targets: Tensor | None, names: Classes | None) -> RawItems:
        if self.contents:
            reader = SoundFiles if self.contents[0][:4] == b"RIFF" and self.contents[0][8:12] == b"WAVE" else ImageFiles
            encoded = EncodedFiles(self.contents, reader.read, self.name)
            return RawItems(encoded, reader.kind, targets, names, table=self.path)
        texts = texts_of([self.columns[column] for column in self.inputs])
        return RawItems(texts, self.kind or TEXT, targets, names, table=self.path)

    # ------------------------------------------------------------------ inputs

    def _inputs(self) -> tuple[tuple[str, ...], str | None]:
        """Return the column of paths and None, or the column or columns of texts and their kind."""
        takes, columns = self.request.takes, self.columns
        if self.table.columns is not None:
            column = self._named(self.table.columns[0])
            files = self._holds_files(column, (str, int)) or self._holds_folders(column, (str, int))
            return (column,), TEXT if not files and takes in (TEXT, None) else None
        found = {name: next((cell for cell in cells if not _is_empty(cell)), "") for name, cells in columns.items()}
        texts = text_columns(found)
        lower = {column.lower(): column for column in columns}
        paths = next((lower[key] for key in PATH_KEYS if key in lower), None)
        paths = paths or next((column for column in columns if self._holds_files(column)), None)
        if paths is None and not (texts and texts[0].lower() in TEXT_NAMES):
            others = [column for column in columns if label_key_of([column.lower()]) is None]
            paths = next(filter(self._holds_folders, others), None)
        if paths is not None and not (takes == TEXT and texts):
            return (paths,), None
        if texts and (takes == TEXT or texts[0].lower() in TEXT_NAMES or " " in str(found[texts[0]])):
            return texts, TEXT  # else the strings may be the ids of files
        example = tuple(columns)[:2] if len(columns) > 1 else ("id", "label")
        raise DataError(
            f"Cannot tell which columns of '{self.path}' are the path or text and the label. Its columns are "
            f"{shortened(', '.join(columns), 500)}. Rename them to 'path' or 'text', and 'label', or name them "
            f"and the folder of the files: Table({self.given}, folder=..., columns={example!r}). For a table of "
            "numbers, pass the pair (X, y)."
        )

    def _named(self, column: str) -> str:
        found = {normalized(name): name for name in self.columns}
        if normalized(column) not in found:
            raise DataError(
                f"'{self.path}' has no column {column!r}.{nearest(column, found)} Its columns are "
                f"{shortened(', '.join(found), 500)}."
            )
        return found[normalized(column)]

    def _holds_files(self, column: str, names: tuple[type, ...] = (str,)) -> bool:
        """Return whether the first cell of a column is the name of a file, of one of the types, or its content."""
        cell = next((cell for cell in self.columns[column] if not _is_empty(cell)), None)
        if isinstance(cell, (bytes, dict)):
            return True
        if not isinstance(cell, names):
            return False
        found = self.files.find(str(cell))
        return is_sample_file(str(cell)) or (found is not None and not found.is_dir())

    def _holds_folders(self, column: str, names: tuple[type, ...] = (str,)) -> bool:
        """Return whether the first cell of a column, of one of the types, is the name of a folder."""
        cell = next((cell for cell in self.columns[column] if not _is_empty(cell)), None)
        found = self.files.find(str(cell)) if isinstance(cell, names) else None
        return found is not None and found.is_dir()

    def _find_items(self, cells: Sequence[Any]) -> None:
        """Find the file or folder of each row, or its content in the cell as Hugging Face writes it.

        Raises:
            DataError: If a cell is empty, or files are missing.
        """
        texts = {*map(type, cells)} == {str}
        if not texts:
            cells = [_unpacked(cell) for cell in cells]
        empty = [] if texts and all(cells) else [row for row, cell in enumerate(cells) if _is_empty(cell)]
        if empty:
            raise DataError(
                f"{len(empty)} rows of '{self.path}' have no {self.inputs[0]}, first row {empty[0] + 1}. Fill them in, "
                "or remove them."
            )
        others = () if texts else cells
        ready = next((cell for cell in others if isinstance(cell, (np.ndarray, Tensor, Image.Image))), None)
        if ready is not None:
            raise DataError(
                f"The column {self.inputs[0]!r} of '{self.path}' holds objects of type {type(ready).__name__}. "
                f"Expected paths or encoded files. Pass the pair (X, y) of lists: (list(table[{self.inputs[0]!r}]), "
                f"list(table['label']))."
            )
        if all(isinstance(cell, bytes) for cell in cells):
            self.contents = list(cells)
            return
        self.located = self.files.find_all(cells if texts else [str(cell) for cell in cells])
        self.paths, missing = self.located.paths, self.located.missing
        if missing:
            noun = "images" if ImageFiles.matches(str(cells[missing[0]])) else "files or folders"
            shown = ", ".join(f"'{shortened(self.files.folder / str(cells[k]))}' (row {k + 1})" for k in missing[:5])
            raise DataError(
                f"'{self.path}' names {len(missing)} of {len(cells)} {noun} that do not exist: {shown}. Paths are "
                f"relative to '{self.files.folder}'. For another folder, pass Table({self.given}, folder=...)."
            )

    # ------------------------------------------------------------------ targets

    def targets(self) -> tuple[Tensor, Classes | None]:
        """Return the targets in the column of labels, or in several of numbers, and the names of the outputs."""
        rest = [column for column in self.columns if column not in self.inputs]
        label = label_key_of([column.lower() for column in rest])
        several = [column for column in rest if column.lower().startswith(("label_", "target_"))]
        labels = [column for column in rest if column.lower() == label] or rest
        if self.table.columns is not None:
            named = self.table.columns[1]
            labels = list(map(self._named, [named] if isinstance(named, str) else named))
            several = labels
        elif label is None and not several and self._are_flags(rest):
            several = rest
        if len(labels) == 1:
            self._say_unread([column for column in rest if column not in labels])
            return self._encoded(labels[0])
        if len(several) > 1:
            self._say_unread([column for column in rest if column not in several])
            columns = columns_of_training(f"'{self.path}'", several, self.request.meaning.classes)
            return _numeric(self.path, self.columns, columns), tuple(map(normalized, columns))
        raise DataError(
            f"Cannot tell which column of '{self.path}' is the label. Besides "
            f"{' and '.join(map(repr, self.inputs))} it has {shortened(', '.join(rest), 500) or 'none'}. Rename the "
            f"column to 'label', or name it: Table({self.given}, columns=({self.inputs[0]!r}, 'label')). For several "
            f"columns with a 0 or 1 per class, name them: columns=({self.inputs[0]!r}, ('cat', 'dog'))."
        )

    def _are_flags(self, columns: list[str]) -> bool:
        """Return whether columns hold a 0 or 1 per class."""
        return all(cell in (0, 1) for column in columns for cell in self.columns[column])

    def _say_unread(self, columns: list[str]) -> None:
        if columns:
            shown = some_of(map(repr, columns), 10)
            names = f"column{'s' * (len(columns) > 1)} {shown} of '{self.path.name}'"
            left_out(names, f"Columns of '{self.path}' that are not read: {shown}.")

    def _encoded(self, column: str) -> tuple[Tensor, Classes | None]:
        cells = self.columns[column]
        texts = {cell for cell in cells if isinstance(cell, str)}
        empty = {text for text in texts if text.strip().lower() in _MISSING}
        if empty:
            missing = [k for k, cell in enumerate(cells) if isinstance(cell, str) and cell in empty]
            raise DataError(
                f"{self.name(missing[0])} has the label {cells[missing[0]]!r}, which stands for a missing one, as in "
                f"{len(missing)} of {len(cells)} rows. Fill in the labels, or remove the rows. If it is a class, "
                "give it another name."
            )
        if (lists := _written_lists(cells)) is not None:
            return self.request.meaning.encode(lists, self.name)
        separator = self.table.label_separator
        if separator is None:
            separator = self._found_separator(cells, texts)
        if separator or (self.request.meaning.several and texts):
            return self._several_hot(column, separator)
        return self.request.meaning.encode(cells, self.name)

    def _found_separator(self, cells: Sequence[Any], texts: set[str]) -> str | None:
        """Return the separator of cells that hold several labels, and say so, or None if they hold one each."""
        known = {normalized(name) for name in self.request.classes or ()}
        found = next((mark for mark in _SEPARATORS if _are_lists(texts, mark, known)), None)
        if found is None and not known:
            self._say_unsplit(texts)
        if found is not None and not self.request.meaning.several:
            example = next(text for text in cells if found in str(text) and text not in known)
            empty = sum(map(_is_empty, cells))
            without = f" {empty} empty cells have none." if empty else ""
            self.notes.append(
                f"Cells of '{self.path}' such as {example!r} are read as several labels, divided by {found!r}, because "
                f"each is a label of its own elsewhere.{without} If they are one class, pass "
                f"Table({self.given}, label_separator='')."
            )
            _warn_once(self.notes[-1])
        return found

    def _say_unsplit(self, texts: set[str]) -> None:
        """Note that cells which may hold several labels are read as one each."""
        mark = next((mark for mark in _SEPARATORS if _may_be_lists(texts, mark)), None)
        if mark is not None:
            example = min(text for text in texts if mark in text.strip())
            self.notes.append(
                f"Cells of '{self.path}' such as {example!r} are read as one class each. If they are several labels, "
                f"pass Table({self.given}, label_separator={mark!r})."
            )

    def _several_hot(self, column: str, separator: str | None) -> tuple[Tensor, Classes]:
        """Return a 0 or 1 per class, float32 [N, K], for cells of several labels each. An empty cell has none."""
        cells = ["" if cell is None else str(cell) for cell in self.columns[column]]
        parts = (cell.split(separator) if separator else [cell] for cell in cells)
        labels = [[part.strip() for part in row if part.strip()] for row in parts]
        return self.request.meaning.encode_several(labels, self.name)


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, (str, bytes)) and not cell)


def _unpacked(cell: Any) -> Any:
    """Return the content or the path in a cell of a Hugging Face column, a dict of `bytes` and `path`."""
    if not isinstance(cell, dict):
        return cell
    return cell.get("bytes") or cell.get("path")


def _are_lists(labels: set[str], separator: str, known: set[str]) -> bool:
    """Return whether cells hold several labels: every part of a divided cell is a known class, or a cell elsewhere."""
    whole = {label for label in labels if separator not in label} | known
    divided = labels - whole
    return bool(divided) and all(part.strip() in whole for label in divided for part in label.split(separator))


def _may_be_lists(labels: set[str], separator: str) -> bool:
    """Return whether most cells are divided, and half or more of their parts are in several cells."""
    divided = [{part.strip() for part in label.split(separator)} for label in labels if separator in label.strip()]
    times = Counter(part for parts in divided for part in parts)
    recurring = sum(count > 1 for count in times.values())
    return 2 * len(divided) > len(labels) and 2 * recurring >= len(times)


@lru_cache(maxsize=256)
def _warn_once(note: str) -> None:
    """Log a note on how a table is read: once, because a table is opened several times in a walk over the verbs."""
    logger.warning("%s", note)


def _written_lists(cells: Sequence[Any]) -> list[Any] | None:
    """Return cells that are lists written as text, as pandas writes them to CSV, or None for others."""
    if not all(isinstance(cell, str) and cell.startswith("[") and cell.endswith("]") for cell in cells):
        return None
    try:
        return list(map(ast.literal_eval, cells))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _numeric(path: Path, table: Columns, columns: list[str]) -> Tensor:
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
