"""Select parameters by pattern.

A pattern is a glob over the full dotted names of modules and parameters. A name covers everything below it:
`layer1` matches that stage but not `layer10`, `*.bn1` matches every batch norm of that name, and `*bias`
every bias. `*` also matches dots.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy

from finetune.errors import ArgumentError, PatternError, nearest

Patterns = str | Iterable[str]


def check_initialized(model: nn.Module) -> None:
    """Check that no layer is lazy, because such a layer has no weights before the first batch.

    Raises:
        ArgumentError: If there is one.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    names = [name for name, tensor in tensors if is_lazy(tensor)]
    if names:
        raise ArgumentError(
            f"{len(names)} weights of lazy layers, the first {names[0]!r}, have no shape before the model has seen "
            f"data. Run the model once before, as in model(X[:2])."
        )


def select(model: nn.Module, patterns: Patterns) -> dict[str, nn.Parameter]:
    """Return the parameters that match `patterns` by full name, in the model's order.

    A tied parameter matches under each of its names and is returned once.

    Raises:
        PatternError: If a pattern matches nothing, or only modules without parameters.
        ArgumentError: If the model has lazy layers that have seen no data.
    """
    check_initialized(model)
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for pattern in _as_list(patterns):
        for name, parameter in _select_one(model, pattern).items():
            found.setdefault(id(parameter), (name, parameter))
    return {found[id(parameter)][0]: parameter for parameter in model.parameters() if id(parameter) in found}


def covers(pattern: str, name: str) -> bool:
    """Return whether `pattern` matches `name` or a module around it. A full name always matches itself.

    Example:
        >>> covers("layer1", "layer1.0.conv1.weight"), covers("layer1", "layer10.0.conv1.weight")
        (True, False)
    """
    parts = name.split(".")
    above = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    return any(part == pattern or fnmatchcase(part, pattern) for part in above)


def names_above(name: str) -> list[str]:
    """Return the full names of the modules around `name`, outermost (`""`) first."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def _select_one(model: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    named = dict(model.named_parameters(remove_duplicate=False))
    matched = {name: parameter for name, parameter in named.items() if covers(pattern, name)}
    if not matched:
        raise PatternError(_nothing_matched(model, pattern, named))
    return matched


def _nothing_matched(model: nn.Module, pattern: str, parameters: Iterable[str]) -> str:
    modules = [name for name, _ in model.named_modules() if name]
    if any(fnmatchcase(name, pattern) for name in modules):
        return (
            f"{pattern!r} matches only modules without parameters, so there is nothing to freeze or train; their "
            f"mode follows the layers next to them. Name a module with parameters."
        )
    children = ", ".join(name for name, _ in model.named_children()) or "none"
    return (
        f"{pattern!r} matches no module or parameter of {type(model).__name__}."
        f"{nearest(pattern, [*modules, *parameters])} Expected a glob over full dotted names; "
        f"the top-level names are: {children}."
    )


def _as_list(patterns: Patterns) -> list[str]:
    listed = list(patterns) if isinstance(patterns, Iterable) and not isinstance(patterns, str) else [patterns]
    if not listed or not all(isinstance(pattern, str) and pattern for pattern in listed):
        raise PatternError(
            f"Expected a name or glob such as 'layer4', or a list of them, but got {patterns!r}. "
            f"To select everything, leave the argument out."
        )
    return listed
