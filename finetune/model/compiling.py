"""`torch.compile` for a model that stays the user's own object: modules are compiled in place, for a while.

Whatever overrides the `forward` of modules, as the replay of a frozen prefix does, and what is compiled
do not see each other: the modules around those that are overridden run as they are, the others compiled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def compiled(model: nn.Module, backend: str, overridden: Collection[nn.Module] = ()) -> Iterator[None]:
    """Have calls of the model compiled, or where modules of it are overridden, those of the largest parts apart.

    Args:
        backend: of `torch.compile`, such as "inductor".
        overridden: modules of the model, with it all that are called by way of something else.
    """
    before = [(part, part._compiled_call_impl) for part in _parts(model, set(overridden))]
    try:
        for part, _ in before:
            part.compile(backend=backend)
        yield
    finally:
        for part, call in before:
            part._compiled_call_impl = call


def is_compiled(model: nn.Module) -> bool:
    """Tell whether the user compiled the model or a part of it in place."""
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())


def _parts(model: nn.Module, overridden: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield the largest modules that hold nothing overridden; a single layer gains nothing by itself."""
    if not overridden:
        yield model
        return
    for child in model.children():
        if overridden.isdisjoint(child.modules()):
            if any(True for _ in child.children()) and not isinstance(child, torch.jit.ScriptModule):
                yield child
        elif child not in overridden:
            yield from _parts(child, overridden)
