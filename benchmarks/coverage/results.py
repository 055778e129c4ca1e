"""The saved rows of a family, in one file of JSON lines."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rows import Row, append_row, read_rows


def read(folder: Path, family: str) -> dict[str, Row]:
    """Return the rows of a family by architecture, the last one of each."""
    return {row["name"]: row for row in read_rows(folder / f"{family}.jsonl")}


def append(folder: Path, row: Row) -> None:
    """Append a row to the file of its family."""
    append_row(folder / f"{row['family']}.jsonl", row)
