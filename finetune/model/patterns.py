"""Which parameters a pattern names.

A pattern is a glob over the full dotted names of modules and parameters, and a name covers all that
lies below it: `layer1` is that stage and never `layer10`, `*.bn1` every batch norm of that name,
`*bias` every bias. As in a shell's globs for plain strings, `*` also crosses dots.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from finetune.errors import PatternError, nearest

Patterns = str | Iterable[str]


def select(model: nn.Module, patterns: Patterns) -> dict[str, nn.Parameter]:
    """Return the parameters that `patterns` name, by full name, in the model's order.

    A tied parameter is found under each of its names and returned once.

    Raises:
        PatternError: a pattern names nothing, or only modules that hold no parameter.
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for pattern in _as_list(patterns):
        for name, parameter in _select_one(model, pattern).items():
            found.setdefault(id(parameter), (name, parameter))
    return {found[id(parameter)][0]: parameter for parameter in model.parameters() if id(parameter) in found}


def covers(pattern: str, name: str) -> bool:
    """Tell whether `pattern` names `name` itself or something above it; a full name always names itself."""
    parts = name.split(".")
    above = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    return any(part == pattern or fnmatchcase(part, pattern) for part in above)


def names_above(name: str) -> list[str]:
    """Return the full names of the modules around `name`, the outermost, `""`, first."""
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
            f"{pattern!r} names only modules without parameters, so there is nothing to freeze or train in "
            f"it; they follow the layers beside them. Name a module that holds parameters."
        )
    children = ", ".join(name for name, _ in model.named_children()) or "none"
    return (
        f"{pattern!r} matches no module and no parameter of {type(model).__name__}."
        f"{nearest(pattern, [*modules, *parameters])} Expected a glob over full dotted names; "
        f"the top-level names are: {children}."
    )


def _as_list(patterns: Patterns) -> list[str]:
    listed = list(patterns) if isinstance(patterns, Iterable) and not isinstance(patterns, str) else [patterns]
    if not listed or not all(isinstance(pattern, str) and pattern for pattern in listed):
        raise PatternError(
            f"Expected a name or glob such as 'layer4', or a list of them, but got {patterns!r}. "
            f"To take everything, leave the argument out."
        )
    return listed
