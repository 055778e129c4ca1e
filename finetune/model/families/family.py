"""What every family of models gives, and how those that can be made at any size show their head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

# A number of classes that no layer has as its width by chance: the thousandth prime.
UNUSUAL = 7919


@dataclass(frozen=True)
class CatalogModel:
    """A model by name.

    `source` is what `catalog.rebuild` needs to make it again, `preset` the preprocessing that is
    published with its weights, `classes` what its outputs mean, None where they mean nothing yet.
    """

    model: nn.Module
    source: dict[str, Any]
    preset: Any | None
    classes: tuple[str, ...] | None


def layers_of_size(model: nn.Module, size: int) -> tuple[str, ...]:
    """Return the full names of the modules that hold a parameter with `size` in its shape."""
    owners = (name.rpartition(".")[0] for name, parameter in model.named_parameters() if size in parameter.shape)
    return tuple(dict.fromkeys(owners))
