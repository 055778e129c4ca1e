"""Compile a model in place with `torch.compile`, temporarily, so that it stays the user's own object.

Compiled code does not see a `forward` that is overridden, as when cached activations replace a frozen
prefix. The modules around overridden ones therefore run eagerly, and the others compiled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def compiled(model: nn.Module, backend: str, overridden: Collection[nn.Module] = ()) -> Iterator[None]:
    """Compile the model, or if some modules are overridden, the largest parts without any of them.

    Args:
        backend: Backend of `torch.compile`, such as "inductor".
        overridden: Modules whose `forward` is overridden.
    """
    before = [(part, part._compiled_call_impl) for part in _parts(model, set(overridden))]
    try:
        for part, _ in before:
            part.compile(backend=backend)
        yield
    finally:
        for part, call in before:
            part._compiled_call_impl = call


@contextmanager
def run_eagerly(*models: nn.Module) -> Iterator[None]:
    """Run models eagerly within the context if they are compiled, because compiled code does not call new hooks."""
    compiles = any(is_compiled(model) or hasattr(model, "_orig_mod") for model in models)
    with torch.compiler.set_stance("force_eager") if compiles else nullcontext():
        yield


def is_compiled(model: nn.Module) -> bool:
    """Return whether the user has compiled the model or a part of it in place."""
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())


def _parts(model: nn.Module, overridden: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield the largest modules without overridden parts. A single layer gains nothing."""
    if not overridden:
        yield model
        return
    for child in model.children():
        if overridden.isdisjoint(child.modules()):
            if any(True for _ in child.children()) and not isinstance(child, torch.jit.ScriptModule):
                yield child
        elif child not in overridden:
            yield from _parts(child, overridden)
