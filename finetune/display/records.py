"""Rows as files: CSV, JSON Lines, and DataFrames of pandas."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import ArgumentError
from finetune.files.durable import written
from finetune.naming.paths import local_path

Record = Mapping[str, Any]


def write_csv(path: str | Path, records: Sequence[Record], columns: Iterable[str] = ()) -> Path:
    """Write records, and return the path.

    Args:
        path: File to write.
        records: The rows.
        columns: Names of the first columns. Those of the records follow.

    Raises:
        ArgumentError: If the file cannot be written. An existing file stays intact.

    Example:
        >>> write_csv("rows.csv", [{"name": "a"}, {"name": "b", "size": 2}]).read_text().splitlines()
        ['name,size', 'a,', 'b,2']
    """
    page = io.StringIO(newline="")
    names = dict.fromkeys([*columns, *(name for record in records for name in record)])
    writer = csv.DictWriter(page, list(names), restval="")
    writer.writeheader()
    writer.writerows(records)
    return _write(path, page.getvalue())


def write_jsonl(path: str | Path, records: Iterable[Record]) -> Path:
    """Write a line of JSON per record, and return the path.

    Raises:
        ArgumentError: If the file cannot be written. An existing file stays intact.

    Example:
        >>> write_jsonl("rows.jsonl", [{"name": "a", "sizes": (1, 2)}]).read_text()
        '{"name": "a", "sizes": [1, 2]}\\n'
    """
    return _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def as_frame(records: Sequence[Record]) -> Any:
    """Return records as a DataFrame of pandas.

    Raises:
        ArgumentError: If pandas is not installed.

    Example:
        >>> list(as_frame([{"name": "a", "size": 2}]))
        ['name', 'size']
    """
    try:
        import pandas
    except ImportError as error:
        raise ArgumentError("to_pandas needs pandas. Run `pip install pandas`, or call to_dicts.") from error
    return pandas.DataFrame(records)


def _write(path: str | Path, text: str) -> Path:
    path = local_path(path)
    try:
        with written(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error}. Expected the path of a file.") from error
    return path
