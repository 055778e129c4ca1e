"""Parts of the data that are left out: logged when they are found, and collected for the overview of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from finetune.display.lines import log

_parts: ContextVar[list[str] | None] = ContextVar("finetune_left_out", default=None)


def left_out(part: str, message: str) -> None:
    """Log that a part of the data is left out.

    Args:
        part: Short name of the part, for the overview, such as `"2 damaged images"`.
        message: Sentence with the details.

    Example:
        >>> with parts_left_out() as parts:
        ...     left_out("column 'id'", "The column 'id' of 'pets.csv' is not read.")
        >>> parts
        ["column 'id'"]
    """
    log.warning("%s", message)
    parts = _parts.get()
    if parts is not None and part not in parts:  # data may be opened twice
        parts.append(part)


@contextmanager
def parts_left_out() -> Iterator[list[str]]:
    """Yield a list that collects the parts that are left out in this context."""
    parts: list[str] = []
    token = _parts.set(parts)
    try:
        yield parts
    finally:
        _parts.reset(token)
