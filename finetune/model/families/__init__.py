"""What the three large model libraries know of their own models, behind one door.

Each family is a module with the same few functions: `is_one`, which goes by a model's classes and
imports nothing; `head`, the full names of the layers that follow the number of classes; and what it
takes to make a model by name. A family never guesses: where it does not know, it says nothing and
the model is taken as any other, by what its forward pass does.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import nn

from finetune.model.families import huggingface, timm, torchvision

_FAMILIES: tuple[ModuleType, ...] = (torchvision, timm, huggingface)


def head(model: nn.Module) -> tuple[str, ...]:
    """Return the full names of the heads that the model's family knows, the main one first; else none."""
    known = next((family.head(model) for family in _FAMILIES if family.is_one(model)), ())
    return tuple(dict.fromkeys(_nearest(model, name) for name in known))


def depth(model: nn.Module) -> list[list[str]] | None:
    """Return the parameters' names in groups from the stem on, where the family publishes such an order."""
    return timm.depth(model) if timm.is_one(model) else None


def examples(model: nn.Module, samples: int) -> list[Any]:
    """Return inputs of `samples` samples, on the CPU, that the model's family says it takes."""
    return next((family.examples(model, samples) for family in (timm, huggingface) if family.is_one(model)), [])


def add_head(model: nn.Module, n: int) -> None:
    """Give a model that was made without classes, as timm's with `num_classes=0`, the head of its architecture."""
    if timm.is_one(model):
        timm.add_head(model, n)


def reset(model: nn.Module) -> None:
    """Draw all weights anew where the model's family has its own way to do that."""
    if huggingface.is_one(model):
        huggingface.reset(model)


def tell_outputs(model: nn.Module, n: int) -> None:
    """Make what the family's own tools read say how many outputs there are, of which nothing more is known yet."""
    if huggingface.is_one(model):
        huggingface.tell_outputs(model, n)


def tell_task(model: nn.Module, kind: str | None, classes: Sequence[str] | None) -> None:
    """Make what the family's own tools read say what the outputs are: the kind of answer, and names if given."""
    if huggingface.is_one(model):
        huggingface.tell_task(model, kind, classes)


def classes(model: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the outputs that a model carries itself; None if it has none."""
    return huggingface.label_names(model.config) if huggingface.is_one(model) else None


def preset(model: nn.Module) -> Any | None:
    """Return the preprocessing that a model carries itself; None if it has none."""
    return timm.preset(model) if timm.is_one(model) else None


def loss_weights(model: nn.Module) -> tuple[float, float]:
    """Return what the losses of the main head and of each head beside it count in training, as the papers say."""
    return timm.loss_weights(model) if timm.is_one(model) else torchvision.loss_weights(model)


def _nearest(model: nn.Module, name: str) -> str:
    """Return `name`, or what stands in its place: users put layers of their own where a family has several."""
    modules = dict(model.named_modules())
    while name not in modules:
        name = name.rpartition(".")[0]
    return name
