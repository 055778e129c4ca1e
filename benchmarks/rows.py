"""The rows of a run, one JSON line each, noted as they are measured: a run that was ended goes on where it was."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, none where there is no file; a line that was torn when a run was ended is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a file, which is made with its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read() == b"\n" else b"\n")  # a line that was torn stays alone
        file.write(json.dumps(row).encode() + b"\n")


def part(text: str) -> tuple[int, int]:
    """Read the option that shares work out among processes: of `"0/2"`, return 0 and 2.

    Raises:
        ArgumentTypeError: it is no part.
    """
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text} is no part; the first of two is 0/2, the other 1/2")
    return int(number), int(of)
