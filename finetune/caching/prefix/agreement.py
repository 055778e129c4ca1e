"""Agreement of two results: bit for bit, or up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.nested import same_values

# Relative difference between kernels for different batch sizes, in half precision.
_ROUNDING = 0.05


def equal_results(one: Tensor, other: Tensor) -> bool:
    """Return whether two results are equal bit for bit, or nearly equal off the CPU, where the order of sums varies."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.device.type == "cpu":
        return same_values(one, other)
    rounding = 64 * torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0
    scale = float(one.abs().amax()) if one.numel() and rounding else 0.0
    return torch.allclose(one, other, rtol=rounding, atol=rounding * scale, equal_nan=True)


def close_results(one: Tensor, other: Tensor) -> bool:
    """Return whether two results come from the same computation, possibly by different kernels."""
    if not one.is_floating_point():
        return one.equal(other)
    one, other = one.float(), other.float()
    scale = float(one.abs().nan_to_num(posinf=0.0).amax()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING * scale, equal_nan=True)
