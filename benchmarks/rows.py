"""The rows of a benchmark, saved as JSON lines as they are measured, so that an interrupted run resumes."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, or none if it does not exist. Skip a line cut off by an interruption."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def append_row(path: Path, row: Row) -> None:
    """Append a row to a file, creating the file and its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read() == b"\n" else b"\n")  # keep a cut-off line on its own
        file.write(json.dumps(row).encode() + b"\n")


def part(text: str) -> tuple[int, int]:
    """Parse the option that divides work among processes: `"0/2"` gives 0 and 2.

    Raises:
        ArgumentTypeError: If the text is not of this form.
    """
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part; for two processes, the parts are 0/2 and 1/2")
    return int(number), int(of)
