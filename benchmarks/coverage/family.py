"""Families of architectures, by name. Each is imported on demand, because importing one takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

SAMPLES = 2

# The module and the attribute of each family.
FAMILIES = {
    "torchvision": ("torchvision_models", "IMAGES"),
    "video": ("torchvision_models", "VIDEOS"),
    "timm": ("timm_models", "FAMILY"),
    "huggingface": ("huggingface_models", "FAMILY"),
    "third_party": ("third_party", "FAMILY"),
}


@dataclass(frozen=True)
class Built:
    """A model with random weights.

    Attributes:
        inputs: Batch of `SAMPLES` samples.
        note: Differences from the published architecture.
    """

    model: nn.Module
    inputs: Any
    note: str = ""


@dataclass(frozen=True)
class Family:
    """A family of architectures.

    Args:
        title: Heading of its table.
        packages: Packages whose versions are recorded.
        names: Function that returns the names of all architectures.
        build: Function that builds an architecture by name, offline.
        sample: Names of a quick sample of small models of different kinds.
        headless: Names of architectures without a classifier, for which a HeadError is correct.
        alone: Function that returns whether an architecture is too large to share the memory with others.
    """

    title: str
    packages: tuple[str, ...]
    names: Callable[[], list[str]]
    build: Callable[[str], Built]
    sample: tuple[str, ...]
    headless: frozenset[str] = frozenset()
    alone: Callable[[str], bool] = lambda name: False


def load_family(name: str) -> Family:
    """Return the family `name`."""
    module, attribute = FAMILIES[name]
    family: Family = getattr(import_module(f"benchmarks.coverage.{module}"), attribute)
    return family
