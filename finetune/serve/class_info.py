"""`ClassInfo`: a text and a link per class, from a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from finetune.errors import DataError, nearest
from finetune.files.regular import opened
from finetune.naming.paths import local_path
from finetune.naming.unicode import normalized

_COLUMNS = ("class", "text", "link")


@dataclass(frozen=True)
class ClassInfo:
    """A text about a class, and a link to read on. Either may be empty."""

    text: str = ""
    link: str = ""


def read_class_info(path: str | Path, classes: Sequence[str]) -> dict[str, ClassInfo]:
    """Read a CSV file with the columns `class`, `text` and `link`, a row per class; not every class needs one.

    Args:
        path: CSV file in UTF-8.
        classes: Class names of the model.

    Raises:
        DataError: If the file cannot be read, or a row names an unknown class, a class twice, or a link that is no web
            address.

    Example:
        >>> _ = Path("breeds.csv").write_text("class,text,link\\npug,A small dog.,https://example.org/pug\\n")
        >>> read_class_info("breeds.csv", ["pug", "husky"])["pug"].text
        'A small dog.'
    """
    path = local_path(path)
    try:
        with opened(path) as file:
            rows = list(csv.reader(io.StringIO(file.read().decode("utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' cannot be read: {error}. Expected a CSV file in UTF-8.") from error
    header, *rows = rows or [[]]
    names = [name.strip().lower() for name in header]
    if "class" not in names or not set(names) <= set(_COLUMNS) or len(set(names)) < len(names):
        raise DataError(f"'{path}' has the columns {', '.join(header) or 'none'}. Expected class, text and link.")
    known = {normalized(name): name for name in classes}
    found: dict[str, ClassInfo] = {}
    for number, row in enumerate(rows, 2):
        if not any(row):
            continue
        cells = dict(zip(names, row, strict=False))
        name = cells.pop("class")
        name = known.get(normalized(name), name)
        where = f"Line {number} of '{path}'"
        if len(row) != len(header):
            raise DataError(f"{where} has {len(row)} cells. Expected {len(header)}; quote texts that hold commas.")
        if name not in classes:
            raise DataError(f"{where} names {name!r}, which is no class of the model.{nearest(name, classes)}")
        if name in found:
            raise DataError(f"{where} names {name!r} a second time. Expected one line per class.")
        link = cells.get("link", "").strip()
        if link and not _is_web_address(link):
            raise DataError(f"{where} has the link {link!r}. Expected one such as https://example.org/page.")
        found[name] = ClassInfo(cells.get("text", "").strip(), link)
    return found


def _is_web_address(link: str) -> bool:
    try:
        parts = urlsplit(link)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not any(map(str.isspace, link))
    except ValueError:
        return False
