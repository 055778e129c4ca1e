"""Silence for tools that warn of their own code and that of models, which their user can do nothing about."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out warnings, logged advice, and the progress bars of transformers.

    Example:
        >>> with quiet():
        ...     warnings.warn("This operator is not optimal.")
    """
    before, bars = logging.root.manager.disable, _bars(shown=False)
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        _bars(shown=bars)


def _bars(*, shown: bool) -> bool:
    """Show or hide the progress bars of transformers, if it is loaded, and return whether they were shown."""
    module = sys.modules.get("transformers.utils.logging")
    if module is None:
        return True
    before = bool(module.is_progress_bar_enabled())
    (module.enable_progress_bar if shown else module.disable_progress_bar)()
    return before
