"""Small data sets as tensors, and a guard against tensor operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def gaussian_blobs(
    n: int = 24, classes: int = 3, features: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return inputs [n, features] in one cluster per class, and class indices [n]."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2
    return centres[y] + torch.randn(n, features, generator=generator, dtype=dtype), y


class NoTensorOperations(TorchDispatchMode):
    """Fail on any tensor operation within the block, such as one that would wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called")
