"""Import packages without measuring their coverage."""

from __future__ import annotations

import contextlib
import importlib
import sys


def import_untraced(*names: str) -> None:
    """Import the installed ones of these packages while no line is traced, which halves the time of the import."""
    tracer = sys.gettrace()
    sys.settrace(None)
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.settrace(tracer)
