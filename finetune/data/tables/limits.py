"""Limits of a table: its columns, and the memory that it takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from finetune.devices.free_memory import free_memory
from finetune.errors import DataError

MAX_COLUMNS = 16_384  # as many as a spreadsheet has
MAX_NAME = 300  # characters of the name of a column, which messages repeat
BYTES_PER_CELL = 64  # of a list and the Python objects in it


def memory_left() -> int:
    """Return the free memory of this machine in bytes."""
    return free_memory(torch.device("cpu"))


def check_names(names: list[str], table: str) -> None:
    """Raise DataError if a table has too many columns, two of one name, or a name that is none."""
    check_width(len(names), table)
    long = next((name for name in names if len(name) > MAX_NAME), None)
    if long is not None:
        raise DataError(
            f"{table} has a column called {long[:80]!r}..., of {len(long):,} characters. Expected names of at most "
            f"{MAX_NAME} characters in the first row. If it has no header row, add one."
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{table} has several columns called {twice[0]!r}. Rename or remove all but one.")


def check_memory(needed: int, path: Path, available: int | None = None) -> None:
    """Raise DataError if a table would not fit into memory, which leaves it `available` bytes, or all that is free."""
    available = memory_left() if available is None else available
    if needed > available:
        raise DataError(
            f"'{path}' would take {needed:,} bytes of memory, of which {available:,} are left for it. Divide it into "
            "several files."
        )


def check_width(columns: int, where: str, reading: str = "") -> None:
    """Raise DataError if a row has too many cells. `reading` says how they were told apart."""
    if columns > MAX_COLUMNS:
        raise DataError(
            f"{where} has {columns:,} cells in a row, but a table may have {MAX_COLUMNS:,} columns.{reading} For a "
            "table of numbers, pass the pair (X, y)."
        )
