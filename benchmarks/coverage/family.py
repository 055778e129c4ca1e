"""What a family of architectures says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Family:
    """A family: which architectures it has, how one is built, and what it reads.

    Args:
        title: for the heading of its table.
        packages: whose versions stand in the table.
        names: returns the names of all architectures.
        build: builds one by name, with random weights and without a network.
        inputs: returns inputs for a name, its model and a number of samples: a tensor, or a dict of them.
        sample: the names of the quick sample, one small model each of different kinds.
        headless: names of architectures that have no classifier; a HeadError is the right answer there.
        note: says what of an architecture is not as published, as "built with depth=2"; "" for nothing.
        alone: tells whether an architecture is so large that no other should be in memory with it.
    """

    title: str
    packages: tuple[str, ...]
    names: Callable[[], list[str]]
    build: Callable[[str], nn.Module]
    inputs: Callable[[str, nn.Module, int], Any]
    sample: tuple[str, ...]
    headless: frozenset[str] = frozenset()
    note: Callable[[str], str] = lambda name: ""
    alone: Callable[[str], bool] = lambda name: False
