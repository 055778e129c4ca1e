"""The depth order of a model: stem ... head.

A stage is what a person would freeze, train or give a learning rate as one: ResNet's `layer3`, one
block of a transformer, the head. Every parameter is in exactly one.

Three things decide. What belongs together is what the family says (timm's `group_matcher`), else the
modules themselves: the elements of a model's lists of layers, and the parts of containers. What comes
first is what the forward pass uses first, where a recording of it is at hand, else what was
registered first. And a norm, or a parameter directly on a container, is no stage by itself: it joins
the stage before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from finetune.model.families import family_of
from finetune.model.freezing import trainable
from finetune.model.patterns import names_above

# Containers are opened until there are this many stages and none holds more than this share of the
# parameter tensors: `features` is no stage of VGG, while `layer3` is one of ResNet-152 (0.71).
_FEWEST_STAGES = 3
_LARGEST_SHARE = 0.75

# A list of layers is opened if at least this share of the parameter tensors is in it: BERT's encoder, or
# the decoder of T5, but not the branches of one block.
_LIST_SHARE = 0.2

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

Groups = dict[str, list[str]]


@dataclass(frozen=True)
class Stage:
    """A named part of the model and the full names of its parameters."""

    name: str
    parameters: tuple[str, ...]


def stages(model: nn.Module, head: Iterable[str] = (), order: Sequence[str] = ()) -> list[Stage]:
    """Return the stages of `model` from the stem to the head.

    Args:
        head: full names of the head's modules, which are the last stage.
        order: full names of parameters in the order in which the forward pass reads them.
    """
    heads = tuple(head)
    top = [name for name, _ in model.named_parameters() if _is_below(name, heads)]
    by_family = family_of(model).depth(model)
    if by_family is not None:
        groups = _named([[name for name in group if name not in set(top)] for group in by_family], top)
    else:
        groups = _in_order(_opened(model, heads), order)
    groups = _joined(model, groups)
    if not groups and top:
        return [Stage(heads[0], tuple(top))]
    last = {heads[0]: top} if top else {}
    return [Stage(name, tuple(parameters)) for name, parameters in (*groups.items(), *last.items())]


def trainable_stages(model: nn.Module, all_stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages that hold a trainable parameter, with those parameters only."""
    training = trainable(model)
    kept = [Stage(stage.name, tuple(name for name in stage.parameters if name in training)) for stage in all_stages]
    return [stage for stage in kept if stage.parameters]


def _opened(model: nn.Module, heads: tuple[str, ...]) -> Groups:
    """Group the parameters by module: containers around the head and lists of layers are opened, then the largest."""
    opened = {"", *(parent for name in heads for parent in names_above(name)), *_layer_lists(model)}
    while True:
        groups = _grouped(model, opened, heads)
        sizes = {name: len(parameters) for name, parameters in _joined(model, groups).items()}
        openable = [name for name in sizes if name not in opened and _has_parts(model.get_submodule(name))]
        largest = max(openable, key=lambda name: sizes[name], default=None)
        enough = len(sizes) >= _FEWEST_STAGES
        if largest is None or (enough and sizes[largest] <= _LARGEST_SHARE * sum(sizes.values())):
            return groups
        opened.add(largest)


def _layer_lists(model: nn.Module) -> set[str]:
    """Return the outermost `ModuleList`s that hold much of the model, and all that is around them."""
    tensors = len(list(model.parameters()))
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(f"{name}.".startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside and len(list(module.parameters())) >= _LIST_SHARE * tensors:
            lists.append(name)
    return {part for name in lists for part in (*names_above(name), name)}


def _grouped(model: nn.Module, opened: set[str], heads: tuple[str, ...]) -> Groups:
    """Give every parameter but the head's to the outermost module around it that is not opened."""
    groups: Groups = {}
    for name, _ in model.named_parameters():
        if not _is_below(name, heads):
            stage = next(part for part in (*names_above(name), name) if part not in opened)
            groups.setdefault(stage, []).append(name)
    return groups


def _named(groups: Iterable[list[str]], top: list[str]) -> Groups:
    """Name each group after the outermost module that holds most of it and nothing of another, or of the head."""
    filled = [group for group in groups if group]
    named: Groups = {}
    for group in filled:
        others = {name for other in (*filled, top) if other is not group for name in other}
        name = ""
        while any(_is_below(other, (name,)) for other in others):
            depth = name.count(".") + 1 if name else 0
            inside = [".".join(part.split(".")[: depth + 1]) for part in group if _is_below(part, (name,))]
            name = max(dict.fromkeys(inside), key=inside.count)
        named[name] = group
    return named


def _in_order(groups: Groups, order: Sequence[str]) -> Groups:
    """Sort the groups by the first use of a parameter of theirs; what is never used stays by its neighbour."""
    position = {name: place for place, name in enumerate(order)}
    first: dict[str, tuple[int, bool]] = {}
    neighbour = -1
    for stage, parameters in groups.items():
        used = [position[name] for name in parameters if name in position]
        neighbour = min(used, default=neighbour)
        first[stage] = (neighbour, bool(used))  # before the neighbour, so that its norm still follows it
    return {stage: groups[stage] for stage in sorted(groups, key=first.__getitem__)}


def _joined(model: nn.Module, groups: Mapping[str, list[str]]) -> Groups:
    """Let norms and single parameters join the stage before them; those before the first stage join it."""
    joined: Groups = {}
    waiting: list[str] = []
    for stage, parameters in groups.items():
        if not _stands_alone(model, stage, parameters):
            if joined:
                joined[next(reversed(joined))].extend(parameters)
            else:
                waiting.extend(parameters)
            continue
        joined[stage] = [*waiting, *parameters]
        waiting = []
    if waiting:
        joined[waiting[0].rpartition(".")[0]] = waiting
    return joined


def _stands_alone(model: nn.Module, stage: str, parameters: Sequence[str]) -> bool:
    """Tell whether this is more than norms and parameters directly on a container."""
    owners = (model.get_submodule(name.rpartition(".")[0]) for name in parameters)
    return stage not in parameters and any(not is_norm(owner) and not _has_parts(owner) for owner in owners)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a normalisation layer, of torch's or of another library."""
    by_name = "norm" in type(module).__name__.lower() and all(weight.dim() < 2 for weight in module.parameters())
    return isinstance(module, _NORMS) or (by_name and not _has_parts(module))


def _has_parts(module: nn.Module) -> bool:
    """Tell whether a module holds others with parameters."""
    return any(next(child.parameters(), None) is not None for child in module.children())


def _is_below(name: str, modules: Iterable[str]) -> bool:
    return any(not module or f"{name}.".startswith(f"{module}.") for module in modules)
