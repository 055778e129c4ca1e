"""Reasons for not caching, as a value and as an exception."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Declined:
    """Reason that something is not done, in one line that fits into a sentence for the user.

    Example:
        >>> str(Declined("no sample is seen twice"))
        'no sample is seen twice'
    """

    reason: str

    def __str__(self) -> str:
        return self.reason


class DeclinedError(Exception):
    """A model cannot be split. Raised to leave the search for a boundary; `cut_prefix` returns it as `Declined`."""
