"""`Table`: a table with the places of its columns and files, where they cannot be told from their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table of a path or text and a label per row, with the facts that its file does not state.

    A path that names a folder stands for every image or audio file in it, at any depth, with the labels of the row.
    These samples stay on one side of a split.

    `fit`, `evaluate` and `predict` accept it wherever they accept the path of a table.

    Attributes:
        data: Path of a CSV or Parquet file, or a DataFrame of pandas or polars.
        folder: Folder that the paths are relative to. None for the folder of the file. A name without a suffix is
            found with any suffix of an image or audio file.
        columns: Column of the paths or texts, and column of the labels, or several columns of a 0 or 1 per class or of
            numbers. None recognizes them.
        delimiter: Character between two cells of a CSV file. None finds it.
        label_separator: Character between the labels of a sample that has several in one cell, such as `" "` or
            `"|"`. The targets are then one 0 or 1 per class. None finds it if every label also stands alone in a
            cell, or is a known class; an empty one means one label per cell.

    Example:
        >>> import csv
        >>> with open("breeds.csv", "w", newline="") as file:
        ...     csv.writer(file).writerows([["id_code", "breed"], ["dog", "husky"], ["dog", "pug"]])
        >>> from finetune.data.sources.open_source import open_source
        >>> open_source(Table("breeds.csv", folder=".", columns=("id_code", "breed"))).classes
        ('husky', 'pug')
    """

    data: Any
    folder: str | Path | None = None
    columns: tuple[str, str | Sequence[str]] | None = None
    delimiter: str | None = None
    label_separator: str | None = None
