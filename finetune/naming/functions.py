"""Names of functions, for tables and records."""

from __future__ import annotations

import functools
from typing import Any


def function_name(function: Any) -> str:
    """Return the name of a function with the options that `functools.partial` sets, or that of an object's class.

    Example:
        >>> function_name(functools.partial(sorted, reverse=True))
        'sorted(reverse=True)'
    """
    if isinstance(function, functools.partial):
        options = [*map(str, function.args), *(f"{name}={value}" for name, value in function.keywords.items())]
        return f"{function_name(function.func)}({', '.join(options)})"
    return str(getattr(function, "__name__", type(function).__name__))
