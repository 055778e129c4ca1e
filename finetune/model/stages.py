"""Divide a model into stages, from the stem to the head.

A stage is a part that is usually frozen, trained or given a learning rate as a whole: ResNet's `layer3`, a
transformer block, the head. Every parameter is in exactly one stage.

The model's family defines the stages if it can (timm's `group_matcher`). Otherwise they are the elements of
the model's lists of layers and the parts of its containers, in the order in which the forward pass reads
them, or without a recording of it, in the order of registration. Norms, and parameters directly on a
container, join the stage before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from finetune.model.families import family_of
from finetune.model.freezing import trainable
from finetune.model.patterns import names_above

# Containers are opened until there are this many stages and none has more than this share of the
# parameter tensors: VGG's `features` is opened, while `layer3` of ResNet-152 (0.71) is a stage.
_FEWEST_STAGES = 3
_LARGEST_SHARE = 0.75

# A list of layers is opened if it has at least this share of the parameter tensors: BERT's encoder and
# T5's decoder are, the branches of a single block are not.
_LIST_SHARE = 0.2

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

_Groups = dict[str, list[str]]


@dataclass(frozen=True)
class Stage:
    """A named part of a model, with the full names of its parameters."""

    name: str
    parameters: tuple[str, ...]


def stages(model: nn.Module, head: Iterable[str] = (), order: Sequence[str] = ()) -> list[Stage]:
    """Return the stages of `model` from the stem to the head.

    Args:
        head: Full names of the head's modules, which form the last stage.
        order: Full names of the parameters in the order in which the forward pass reads them.
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
    """Return the stages with trainable parameters, reduced to those."""
    training = trainable(model)
    kept = [Stage(stage.name, tuple(name for name in stage.parameters if name in training)) for stage in all_stages]
    return [stage for stage in kept if stage.parameters]


def _opened(model: nn.Module, heads: tuple[str, ...]) -> _Groups:
    """Group the parameters by module. Open containers around the head and lists of layers, then the largest."""
    opened = {"", *(parent for name in heads for parent in names_above(name)), *_layer_lists(model)}
    modules = dict(model.named_modules(remove_duplicate=False))
    while True:
        groups = _grouped(model, opened, heads)
        sizes = {name: len(parameters) for name, parameters in _joined(model, groups).items()}
        openable = [name for name in sizes if name not in opened and _has_parts(modules[name])]
        largest = max(openable, key=lambda name: sizes[name], default=None)
        enough = len(sizes) >= _FEWEST_STAGES
        if largest is None or (enough and sizes[largest] <= _LARGEST_SHARE * sum(sizes.values())):
            return groups
        opened.add(largest)


def _layer_lists(model: nn.Module) -> set[str]:
    """Return the outermost `ModuleList`s with a large share of the model, and the modules around them."""
    tensors = len(list(model.parameters()))
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(f"{name}.".startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside and len(list(module.parameters())) >= _LIST_SHARE * tensors:
            lists.append(name)
    return {part for name in lists for part in (*names_above(name), name)}


def _grouped(model: nn.Module, opened: set[str], heads: tuple[str, ...]) -> _Groups:
    """Assign every parameter outside the head to the outermost unopened module around it."""
    groups: _Groups = {}
    for name, _ in model.named_parameters():
        if not _is_below(name, heads):
            stage = next(part for part in (*names_above(name), name) if part not in opened)
            groups.setdefault(stage, []).append(name)
    return groups


def _named(groups: Iterable[list[str]], top: list[str]) -> _Groups:
    """Name each group after the outermost module with most of its parameters and none of another group or the head."""
    filled = [group for group in groups if group]
    named: _Groups = {}
    for group in filled:
        others = {name for other in (*filled, top) if other is not group for name in other}
        name = ""
        while any(_is_below(other, (name,)) for other in others):
            depth = name.count(".") + 1 if name else 0
            inside = [".".join(part.split(".")[: depth + 1]) for part in group if _is_below(part, (name,))]
            name = max(dict.fromkeys(inside), key=inside.count)
        named[name] = group
    return named


def _in_order(groups: _Groups, order: Sequence[str]) -> _Groups:
    """Sort the groups by the first use of their parameters. Unused groups stay next to their neighbor."""
    position = {name: place for place, name in enumerate(order)}
    first: dict[str, tuple[int, bool]] = {}
    neighbor = -1
    for stage, parameters in groups.items():
        used = [position[name] for name in parameters if name in position]
        neighbor = min(used, default=neighbor)
        first[stage] = (neighbor, bool(used))  # before the neighbor, whose norm still has to follow it
    return {stage: groups[stage] for stage in sorted(groups, key=first.__getitem__)}


def _joined(model: nn.Module, groups: Mapping[str, list[str]]) -> _Groups:
    """Merge norms and single parameters into the stage before them, or into the first stage."""
    joined: _Groups = {}
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
    """Return whether a group is more than norms and parameters directly on a container."""
    modules = dict(model.named_modules(remove_duplicate=False))  # get_submodule fails within torch.jit's programs
    owners = (modules[name.rpartition(".")[0]] for name in parameters)
    return stage not in parameters and any(not is_norm(owner) and not _has_parts(owner) for owner in owners)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalization layer, from torch or another library."""
    by_name = "norm" in type(module).__name__.lower() and all(weight.dim() < 2 for weight in module.parameters())
    return isinstance(module, _NORMS) or (by_name and not _has_parts(module))


def _has_parts(module: nn.Module) -> bool:
    """Return whether a module has submodules with parameters."""
    return any(next(child.parameters(), None) is not None for child in module.children())


def _is_below(name: str, modules: Iterable[str]) -> bool:
    return any(not module or f"{name}.".startswith(f"{module}.") for module in modules)
