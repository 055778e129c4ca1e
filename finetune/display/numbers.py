"""Numbers as a person reads them, and dicts of them that print so."""

from __future__ import annotations

from typing import Any


class Values(dict[str, Any]):
    """Values by name, rounded where they are printed. The values themselves are exact.

    Example:
        >>> values = Values(loss=1.2345678, accuracy=0.44999998807907104)
        >>> values
        {'loss': 1.2346, 'accuracy': 0.45}
        >>> values["accuracy"]
        0.44999998807907104
    """

    def __repr__(self) -> str:
        return repr({name: rounded(value) for name, value in self.items()})


def and_more(count: int, shown: int) -> list[str]:
    """Return the line below the first rows of a table, or none if there are no more.

    Example:
        >>> and_more(1234, shown=20), and_more(20, shown=20)
        (['... and 1,214 more'], [])
    """
    return [f"... and {count - shown:,} more"] if count > shown else []


def rounded(value: Any) -> Any:
    """Return a float with four decimals, or four digits if it is small, and anything else as it is.

    Example:
        >>> [rounded(value) for value in (19.684187995, 0.44999998807907104, 0.00051026263, 7)]
        [19.6842, 0.45, 0.0005103, 7]
    """
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}" if abs(value) < 0.1 else f"{value:.4f}")


def fixed(value: Any) -> str:
    """Return a number in a width that suits a column: four decimals, or three digits if they would hide it.

    Example:
        >>> [fixed(value) for value in (0.5, 0.0, 0.00002, 3)]
        ['0.5000', '0.0000', '2e-05', '3']
    """
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if 0 < abs(value) < 0.001 or abs(value) >= 10**6 else f"{value:.4f}"
