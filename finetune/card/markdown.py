"""Text as Markdown, and plain values as the YAML in front of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.errors import printable

_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # which YAML takes for the end of a line, or refuses


def escaped(text: object) -> str:
    """Return a text of one line that Markdown shows as it is, such as the name of a class.

    Example:
        >>> escaped("a|b *c*")
        'a\\\\|b \\\\*c\\\\*'
    """
    return re.sub(r"([\\`*_{}\[\]<>()#+!|&~$])", r"\\\1", printable(" ".join(str(text).split())))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table, with escaped cells."""
    lines = [head, ["---"] * len(head), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def front_matter(values: Mapping[str, Any]) -> str:
    """Return values as YAML between two lines of dashes.

    Example:
        >>> print(front_matter({"tags": ["a"], "license": "mit"}))
        ---
        tags:
          - "a"
        license: "mit"
        ---
    """
    return "\n".join(["---", *_yaml(values, 0), "---"])


def _yaml(value: Any, depth: int) -> list[str]:
    """Return the lines of a mapping or a list."""
    space, lines = "  " * depth, []
    if isinstance(value, Mapping):
        for key, item in value.items():
            nested = isinstance(item, (Mapping, list)) and item
            lines += [f"{space}{key}:", *_yaml(item, depth + 1)] if nested else [f"{space}{key}: {_scalar(item)}"]
        return lines
    for item in value:
        first, *rest = _yaml(item, depth + 1) if isinstance(item, Mapping) and item else [_scalar(item)]
        lines += [f"{space}- {first.lstrip()}", *rest]
    return lines


def _scalar(value: Any) -> str:
    """Return a plain value as JSON that YAML 1.1 reads in the same way."""
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", json.dumps(value))  # 1e-05 would be a string
    text = json.dumps(value, ensure_ascii=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
