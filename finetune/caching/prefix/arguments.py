"""A batch as what a model is called with: a flat list of leaves, and whether they are the same as others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from finetune.data.loading.lazy_tensor import LazyTensor
from finetune.digests import checksum


def arguments(inputs: Any) -> tuple[list[Any], Any]:
    """Return the flat list of what a model is called with, and its structure of positions and keywords."""
    if isinstance(inputs, Mapping):
        return tree_flatten(((), dict(inputs)))
    return tree_flatten((tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}))


def batch_of(leaves: list[Any], structure: Any) -> Any:
    args, kwargs = tree_unflatten(leaves, structure)
    return kwargs or args


def like(leaf: Any, example: Any) -> bool:
    if not isinstance(leaf, Tensor) or not isinstance(example, Tensor):
        return leaf is example or (not isinstance(leaf, Tensor) and bool(leaf == example))
    kind = (leaf.dtype, leaf.device, leaf.dim(), leaf.shape[1:])
    return leaf.dim() > 0 and kind == (example.dtype, example.device, example.dim(), example.shape[1:])


def same_argument(leaf: Any, expected: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf is expected and not leaf.requires_grad
    return leaf is expected or (not isinstance(expected, Tensor) and bool(leaf == expected))


def versions(leaves: list[Any]) -> list[int | None]:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def checksums(leaves: list[Any]) -> list[int | None]:
    """Return the checksums of tensors, to tell whether they changed; None of one that nobody has read."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [
        None if isinstance(tensor, LazyTensor) and not tensor.is_materialized else checksum(tensor)
        for tensor in tensors
    ]
