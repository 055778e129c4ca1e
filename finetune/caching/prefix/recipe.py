"""What is stored, said in full: the operations that make it from the inputs, and every constant they read.

Read off a trace, and so below modules: a stride, an epsilon, a cast, the choice of a layer or a bare
tensor on a module all show, whatever they are called. What trains, and what comes after, does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from finetune.caching.prefix.trace import Trace


@dataclass(frozen=True)
class Recipe:
    """Two recipes with the same `text` and the same values of `constants` store the same of the same inputs."""

    text: str = ""
    constants: tuple[Tensor, ...] = ()


def recipe_of(trace: Trace, stored: Sequence[Tensor]) -> Recipe:
    """Return the recipe of some of a trace's tensors, none of which follows from what trains."""
    originals = {alias: tensor for call in trace.calls for alias, tensor in call.aliases.items()}
    names = {id(tensor): f"input {number} {kind_of(tensor)}" for number, tensor in enumerate(trace.inputs)}
    constants: dict[int, Tensor] = {}

    def name_of(leaf: Any) -> str:
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        while id(leaf) in originals:
            leaf = originals[id(leaf)]
        if id(leaf) not in names:
            names[id(leaf)] = f"constant {len(constants)}"
            constants[id(leaf)] = leaf
        return names[id(leaf)]

    lines: list[str] = []
    kept: dict[int, str] = {}
    end = 1 + max(trace.born[id(tensor)] for tensor in stored)
    for time, operation in enumerate(trace.operations[:end]):
        if operation.cause is None:
            arguments = tree_unflatten(list(map(name_of, operation.arguments)), operation.signature)
            for place, leaf in enumerate(operation.results):
                if isinstance(leaf, Tensor):
                    names.setdefault(id(leaf), f"{len(lines)}.{place}")
            lines.append(f"{operation.func} {arguments}")
        for place, tensor in enumerate(stored):
            if trace.born[id(tensor)] == time:  # it may be written in place later
                kept[place] = f"stored {place}: {name_of(tensor)} after {len(lines)} operations"
    lines += [kept[place] for place in range(len(stored))]
    return Recipe("\n".join(lines), tuple(constants.values()))


def kind_of(tensor: Tensor) -> str:
    """Say what a tensor is, but for its values."""
    strides = tensor.stride() if tensor.layout == torch.strided else None
    return f"{tensor.dtype} {tuple(tensor.shape)} {strides} {tensor.device.type}"
