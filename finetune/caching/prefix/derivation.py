"""The derivation of stored activations from the inputs: every operation and every constant that it reads.

It is read from a trace and therefore describes operations below modules: strides, epsilons, casts, choices between
layers and tensor attributes of modules all appear. Trainable parameters and operations past the boundary do not.
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
class Derivation:
    """Computation of stored activations. Equal text and constants give equal activations for equal inputs.

    Attributes:
        text: One line per operation and per stored tensor.
        constants: Parameters, buffers and other tensors that the operations read.
    """

    text: str = ""
    constants: tuple[Tensor, ...] = ()


def derivation_of(trace: Trace, stored: Sequence[Tensor]) -> Derivation:
    """Return the derivation of some tensors of a trace, none of which depends on a trainable parameter."""
    originals = {alias: tensor for call in trace.calls for alias, tensor in call.aliases.items()}
    names = {id(tensor): f"input {number} {layout_of(tensor)}" for number, tensor in enumerate(trace.inputs)}
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
            if trace.born[id(tensor)] == time:  # a later operation may write it in place
                kept[place] = f"stored {place}: {name_of(tensor)} after {len(lines)} operations"
    lines += [kept[place] for place in range(len(stored))]
    return Derivation("\n".join(lines), tuple(constants.values()))


def layout_of(tensor: Tensor) -> str:
    """Describe a tensor's dtype, shape, strides and kind of device. These texts are part of the keys on disk."""
    strides = tensor.stride() if tensor.layout == torch.strided else None
    return f"{tensor.dtype} {tuple(tensor.shape)} {strides} {tensor.device.type}"
