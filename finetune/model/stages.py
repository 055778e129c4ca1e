"""The depth order of a model: stem ... head.

A stage is what a person would freeze, train or give a learning rate as one: ResNet's `layer3`, one
block of a vision transformer, the head. Every parameter is in exactly one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from finetune.model.freezing import trainable

# Containers are opened until there are this many stages and none holds more than this share of the
# parameter tensors: `features` is no stage of VGG, while `layer3` is one of ResNet-152 (0.71).
_FEWEST_STAGES = 3
_LARGEST_SHARE = 0.75

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Stage:
    """A named part of the model and the full names of its parameters."""

    name: str
    parameters: tuple[str, ...]


def stages(model: nn.Module, head: Iterable[str] = ()) -> list[Stage]:
    """Return the stages of `model` from the stem to the head; `head` names the head's modules.

    Containers around the head are opened, so that it is a stage of its own; then the largest are,
    until at least three stages stand before it and none is most of the model. A norm that would be
    a stage by itself, and a parameter directly on an opened container, belong to the stage before.
    """
    heads = tuple(head)
    opened = {"", *(parent for name in heads for parent in _above(name))}
    while True:
        groups = _grouped(model, opened, heads)
        backbone = {name: len(parameters) for name, parameters in groups.items() if name not in heads}
        openable = [name for name in backbone if name not in opened and _parts(model, name)]
        largest = max(openable, key=lambda name: backbone[name], default=None)
        enough = len(backbone) >= _FEWEST_STAGES
        if largest is None or (enough and backbone[largest] <= _LARGEST_SHARE * sum(backbone.values())):
            return [Stage(name, tuple(parameters)) for name, parameters in groups.items()]
        opened.add(largest)


def trainable_stages(model: nn.Module, head: Iterable[str] = ()) -> list[Stage]:
    """Return the stages that hold a trainable parameter, with those parameters only."""
    training = trainable(model)
    kept = [
        Stage(stage.name, tuple(name for name in stage.parameters if name in training))
        for stage in stages(model, head)
    ]
    return [stage for stage in kept if stage.parameters]


def _grouped(model: nn.Module, opened: set[str], heads: tuple[str, ...]) -> dict[str, list[str]]:
    """Give every parameter to the outermost module around it that is not opened; the head comes last."""
    norms = {name for name, module in model.named_modules() if isinstance(module, _NORMS)}
    groups: dict[str, list[str]] = {}
    waiting: list[str] = []  # what comes before the first stage joins it
    top: list[str] = []
    current = ""
    for name, _ in model.named_parameters():
        around = [*_above(name), name]
        if any(head in around for head in heads):
            top.append(name)
            continue
        stage = next(part for part in around if part not in opened)
        if stage != name and stage not in norms:
            current = stage
        if current:
            groups.setdefault(current, []).extend([*waiting, name])
            waiting = []
        else:
            waiting.append(name)
    if waiting:
        groups[waiting[0].rpartition(".")[0]] = waiting
    return {**groups, heads[0]: top} if top else groups


def _above(name: str) -> list[str]:
    """Return the full names of the modules around `name`, the outermost, `""`, first."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def _parts(model: nn.Module, name: str) -> bool:
    """Tell whether a stage can be opened: it holds parts with parameters."""
    children = model.get_submodule(name).children()
    return any(next(child.parameters(), None) is not None for child in children)
