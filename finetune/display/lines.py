"""Lines for the user, such as one per epoch: logged, and printed where logging does not show them.

Every line goes to the logger `finetune` at level INFO. A notebook and `python train.py > log` hold the lines without
any setting, and nobody who has configured logging reads one twice.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_NARROWEST, _WIDEST = 40, 110  # columns
_INDENT = "    "  # of the later rows of a line

log = logging.getLogger("finetune")

Show = Callable[[str, "Mapping[str, str] | None"], Any]


def print_line(line: str, cells: Mapping[str, str] | None = None) -> None:
    """Print a line to standard output at once, also to a file. It is wrapped to the width of a terminal."""
    columns = _terminal_columns()
    print(line if columns is None else wrapped(line, max(_NARROWEST, columns - 1)), flush=True)


def wrapped(line: str, width: int) -> str:
    """Return a line in rows of at most a width, broken between its values if it has several, else between its words.

    Args:
        line: Line in which two spaces separate values.
        width: Columns of a row.

    Example:
        >>> print(wrapped("epoch 1/3  loss 0.5  val_loss 0.7  2.1 s, 60 samples/s", 36))
        epoch 1/3  loss 0.5  val_loss 0.7
            2.1 s, 60 samples/s
    """
    if len(line) <= width:
        return line
    if "  " in line.strip():
        line = re.sub(r"(?<! ) (?! )", "\N{NO-BREAK SPACE}", line)
    rows = textwrap.wrap(line, width, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False)
    return "\n".join(rows).replace("\N{NO-BREAK SPACE}", " ")


def line_width() -> int:
    """Return the columns that a line of text should fit in: those of a terminal, but no more than are easily read.

    Example:
        >>> line_width() <= 110
        True
    """
    columns = _terminal_columns()
    return _WIDEST if columns is None else max(_NARROWEST, min(_WIDEST, columns - 1))


@contextmanager
def lines_shown(show: Show = print_line, logger: logging.Logger = log) -> Iterator[None]:
    """Show the lines logged at INFO that logging itself does not show.

    Meanwhile the logger's level is lowered, and its handlers receive what they would have received otherwise. Nothing
    is shown if the user has raised the level of the logger `finetune`, or if a handler shows the lines already.

    Args:
        show: Function of a line and of its values by name, if the record of logging has them as `cells`.
        logger: Logger that the lines are written to.
    """
    if log.level > logging.INFO or _has_listeners(logger):
        yield
        return
    own, effective = logger.level, logger.getEffectiveLevel()

    def listen(record: logging.LogRecord) -> bool:
        if record.levelno == logging.INFO:
            show(record.getMessage(), getattr(record, "cells", None))
        return record.levelno >= effective

    logger.setLevel(min(effective, logging.INFO))
    logger.addFilter(listen)
    try:
        yield
    finally:
        logger.removeFilter(listen)
        logger.setLevel(own)


def _terminal_columns() -> int | None:
    """Return the width of the terminal that standard output is, or None if it is none."""
    if sys.stdout is None or sys.stdout.closed or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size((_WIDEST, 0)).columns


def _has_listeners(logger: logging.Logger) -> bool:
    """Return whether a handler, other than one for a file, takes the lines at INFO."""
    chain: logging.Logger | None = logger if logger.isEnabledFor(logging.INFO) else None
    while chain is not None:
        for handler in chain.handlers:
            if handler.level <= logging.INFO and not isinstance(handler, (logging.FileHandler, logging.NullHandler)):
                return True
        chain = chain.parent if chain.propagate else None
    return False
