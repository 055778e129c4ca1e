"""The results: one JSON line an architecture, appended as it is done, so that a run can go on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(folder: Path, family: str) -> dict[str, Row]:
    """Return the rows of a family by architecture; of several for one, the last."""
    path = folder / f"{family}.jsonl"
    if not path.exists():
        return {}
    rows: dict[str, Row] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line that a run was writing when it was ended
        rows[row["name"]] = row
    return rows


def append(folder: Path, row: Row) -> None:
    """Add a row to its family's file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{row['family']}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
