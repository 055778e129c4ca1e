"""The results: one JSON line an architecture, appended as it is done, so that a run can go on where it was."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rows import Row, append_row, read_rows


def read(folder: Path, family: str) -> dict[str, Row]:
    """Return the rows of a family by architecture; of several for one, the last."""
    return {row["name"]: row for row in read_rows(folder / f"{family}.jsonl")}


def append(folder: Path, row: Row) -> None:
    """Add a row to its family's file."""
    append_row(folder / f"{row['family']}.jsonl", row)
