"""Containers of tensors, as batches and outputs may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


class Pair(NamedTuple):
    """Inputs and targets by name."""

    x: Tensor
    y: Any


@dataclass
class Record:
    """A tensor and a note."""

    x: Tensor
    note: str = ""


class Graph:
    """An object that only a model understands."""
