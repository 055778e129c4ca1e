"""Small data sets as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_blobs(
    n: int = 24, classes: int = 3, features: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return inputs [n, features] in one cluster per class, and class indices [n]."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2
    return centres[y] + torch.randn(n, features, generator=generator, dtype=dtype), y
