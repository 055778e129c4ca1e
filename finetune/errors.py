"""Every error the package raises on purpose.

Each is a `FineTuneError` and also the builtin that fits, so that `except ValueError` keeps working
for those who do not know this package. A message says what happened, what was expected and what to
do; `nearest` adds the candidates a typing mistake probably meant.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Iterable


class FineTuneError(Exception):
    """Base of every error raised on purpose by this package."""


class ArgumentError(FineTuneError, ValueError):
    """An argument has a value that cannot work."""


class PatternError(FineTuneError, ValueError):
    """A pattern names no module and no parameter of the model."""


class HeadError(FineTuneError, ValueError):
    """The model's head cannot be found or cannot be replaced."""


class DataError(FineTuneError, ValueError):
    """The data cannot be trained on as it is."""


class CheckpointError(FineTuneError, RuntimeError):
    """A weights or checkpoint file is missing, damaged, or belongs to another model."""


class NonFiniteError(FineTuneError, ArithmeticError):
    """The loss or a gradient became NaN or infinite."""

    updates_since = 0  # that were tried, and left out, before the host read of it


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """Return `" Did you mean 'a', 'b'?"` for the candidates most like `name`, or `""`."""
    close = difflib.get_close_matches(name, list(candidates), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(repr(c) for c in close)}?" if close else ""


def reason(error: Exception) -> str:
    """Say why in a line: torch goes on to say how to run the code in a file, which is never done here."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds objects beside tensors, and making those could run code"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
