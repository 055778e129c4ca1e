"""A batch as the arguments of a model: a flat list of leaves, compared with other arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from finetune.data.loading.lazy_tensor import LazyTensor
from finetune.digests import checksum


def flatten_inputs(inputs: Any) -> tuple[list[Any], Any]:
    """Return a model's arguments as a flat list of leaves and the structure of positions and keywords."""
    if isinstance(inputs, Mapping):
        return tree_flatten(((), dict(inputs)))
    return tree_flatten((tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}))


def unflatten_inputs(leaves: list[Any], structure: Any) -> Any:
    """Return the inputs that `flatten_inputs` flattens to `leaves`."""
    args, kwargs = tree_unflatten(leaves, structure)
    return kwargs or args


def matches_example(leaf: Any, example: Any) -> bool:
    """Return whether an argument has the dtype, device and shape per sample of an example, or its value."""
    if not isinstance(leaf, Tensor) or not isinstance(example, Tensor):
        return leaf is example or (not isinstance(leaf, Tensor) and bool(leaf == example))
    kind = (leaf.dtype, leaf.device, leaf.dim(), leaf.shape[1:])
    return leaf.dim() > 0 and kind == (example.dtype, example.device, example.dim(), example.shape[1:])


def same_argument(leaf: Any, expected: Any) -> bool:
    """Return whether an argument is the expected tensor itself, without gradient, or equals the expected value."""
    if isinstance(leaf, Tensor):
        return leaf is expected and not leaf.requires_grad
    return leaf is expected or (not isinstance(expected, Tensor) and bool(leaf == expected))


def versions(leaves: list[Any]) -> list[int | None]:
    """Return the version counters of tensors, which in-place operations increase."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def checksums(leaves: list[Any]) -> list[int | None]:
    """Return the checksums of tensors; None for lazy tensors that have not been read."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [
        None if isinstance(tensor, LazyTensor) and not tensor.is_materialized else checksum(tensor)
        for tensor in tensors
    ]
