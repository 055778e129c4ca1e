"""A limit to the memory that code may ask for, which holds before the memory is allocated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from finetune.nested import tensors_of

# A new tensor counts as at least this many bytes, so that there are not many more layers than memory.
_LEAST = 1 << 14


class AllocationError(RuntimeError):
    """Code asked for more memory than its limit."""


class AllocationLimit(TorchDispatchMode):
    """A context that limits the memory of all new tensors together, and of each result of others.

    Args:
        most: Limit in bytes, for both.

    Raises:
        AllocationError: Within the context, instead of the allocation.

    Example:
        >>> with AllocationLimit(1_000_000):
        ...     torch.nn.Linear(10**6, 10**6)
        Traceback (most recent call last):
        finetune.model.inspection.allocation.AllocationError: it asks for 4,000.0 GB of memory
    """

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self.total = most, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not func._schema.is_mutable and not func.is_view:
            size = _result_bytes(func, args, kwargs)
            if not tensors_of((args, kwargs)):
                self.total += max(size, _LEAST)
            if max(size, self.total) > self.most:
                raise AllocationError(f"it asks for {max(size, self.total) / 1e9:,.1f} GB of memory")
        return func(*args, **kwargs)


def _result_bytes(func: Any, args: Any, kwargs: Any) -> int:
    """Return the size of an operation's result; 0 if it follows from values, and so has at most the size of these."""
    try:
        args, kwargs = tree_map(_without_values, (args, kwargs))
        if "device" in {argument.name for argument in func._schema.arguments}:
            kwargs["device"] = torch.device("meta")
        result = func(*args, **kwargs)
    except Exception:  # unknown without values; the operation itself raises the error
        return 0
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors_of(result))


def _without_values(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
