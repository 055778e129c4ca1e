"""What a family of architectures says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

SAMPLES = 2


@dataclass(frozen=True)
class Built:
    """A model with random weights, inputs of `SAMPLES` samples for it, and what of it is not as published."""

    model: nn.Module
    inputs: Any
    note: str = ""


@dataclass(frozen=True)
class Family:
    """A family: which architectures it has and how one is built.

    Args:
        title: for the heading of its table.
        packages: whose versions stand in the table.
        names: returns the names of all architectures.
        build: builds one by name, without a network.
        sample: the names of the quick sample, one small model each of different kinds.
        headless: names of architectures that have no classifier; a HeadError is the right answer there.
        alone: tells whether an architecture is so large that no other should be in memory with it.
    """

    title: str
    packages: tuple[str, ...]
    names: Callable[[], list[str]]
    build: Callable[[str], Built]
    sample: tuple[str, ...]
    headless: frozenset[str] = frozenset()
    alone: Callable[[str], bool] = lambda name: False
