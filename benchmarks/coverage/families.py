"""The families by name. Each is imported only when it is asked for: that takes seconds."""

from __future__ import annotations

from importlib import import_module

from benchmarks.coverage.family import Family

FAMILIES = {
    "torchvision": ("torchvision_models", "PICTURES"),
    "video": ("torchvision_models", "VIDEOS"),
    "timm": ("timm_models", "FAMILY"),
    "huggingface": ("huggingface_models", "FAMILY"),
    "third_party": ("third_party", "FAMILY"),
}


def load_family(name: str) -> Family:
    """Return the family `name`."""
    module, attribute = FAMILIES[name]
    family: Family = getattr(import_module(f"benchmarks.coverage.{module}"), attribute)
    return family
