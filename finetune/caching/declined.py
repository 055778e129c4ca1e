"""Reasons for not caching, as values and as an exception."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Declined:
    """Why something is not done, in one line that fits into a sentence for the user.

    >>> str(Declined("no sample is seen twice"))
    'no sample is seen twice'
    """

    reason: str

    def __str__(self) -> str:
        return self.reason


class DeclinedError(Exception):
    """A model cannot be split. Unwinds the search for a boundary; `cut_prefix` returns it as `Declined`."""
