"""Fast random initialization of large models.

Drawing a truncated normal number takes about 20 ns, and the architectures have 10^11 parameters in total. Within
`CheapWeights`, large tensors are initialized by copying from one block of noise instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_BLOCK = 1 << 20
_SMALL = 1 << 12  # smaller tensors are drawn normally


class CheapWeights(TorchFunctionMode):
    """Make `normal_`, `uniform_` and the functions of `torch.nn.init` fill large tensors from a block of noise.

    Means, standard deviations and bounds are kept. Values repeat after a million numbers, which no check depends on.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self._uniform = torch.rand(_BLOCK, generator=generator).mul_(2).sub_(1)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, settings = getattr(func, "__name__", ""), dict(kwargs or {})
        tensor, *rest = args or (settings.pop("tensor", None),)
        if name not in _FILLS or not isinstance(tensor, Tensor) or tensor.numel() < _SMALL or tensor.is_meta:
            return func(*args, **(kwargs or {}))
        if name == "erfinv_":  # second step of a truncated normal; the first one filled the tensor
            return tensor
        return self._filled(tensor, *_FILLS[name](tensor, *rest, **settings))

    @torch.no_grad()
    def _filled(self, tensor: Tensor, centre: float, half_width: float) -> Tensor:
        flat = tensor.view(-1) if tensor.is_contiguous() else torch.empty(tensor.numel(), dtype=tensor.dtype)
        for part in flat.split(_BLOCK):
            part.copy_(self._uniform[: len(part)])
        flat.mul_(half_width).add_(centre)
        return tensor if tensor.is_contiguous() else tensor.copy_(flat.view(tensor.shape))


def _of_normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *_: Any, **__: Any) -> tuple[float, float]:
    return mean, std * math.sqrt(3)  # half-width of the uniform distribution with this standard deviation


def _of_uniform(tensor: Tensor, a: float = 0.0, b: float = 1.0, *_: Any, **kwargs: Any) -> tuple[float, float]:
    a, b = kwargs.get("from", a), kwargs.get("to", b)
    return (a + b) / 2, (b - a) / 2


def _by_fan_in(tensor: Tensor, *_: Any, **__: Any) -> tuple[float, float]:
    return 0.0, math.sqrt(3 / max(1, tensor.numel() // max(1, len(tensor))))


_FILLS: dict[str, Callable[..., tuple[float, float]]] = {
    "normal_": _of_normal,
    "trunc_normal_": _of_normal,
    "uniform_": _of_uniform,
    "kaiming_uniform_": _by_fan_in,
    "kaiming_normal_": _by_fan_in,
    "xavier_uniform_": _by_fan_in,
    "xavier_normal_": _by_fan_in,
    "erfinv_": _of_normal,
}
