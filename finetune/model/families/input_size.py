"""The images that a module was built for, as its attributes, first convolution and position table state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

_SIZES = ("img_size", "image_size")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class InputSize(NamedTuple):
    """The images that a model was built for.

    Attributes:
        channels: Number of channels, or None if the model does not state it.
        size: Length of each spatial dimension, or None if the model takes any, or does not state it.

    Example:
        >>> stated_input_size(nn.Conv2d(1, 8, 3))
        InputSize(channels=1, size=None)
    """

    channels: int | None = None
    size: tuple[int, ...] | None = None


def stated_input_size(model: nn.Module) -> InputSize:
    """Return the images that `model` was built for, as far as it states them.

    Vision transformers keep the size as an attribute, of their own or of their patch embedding. Otherwise, it follows
    from the number of positions and the stride of the first convolution.
    """
    first = next((module for module in model.modules() if isinstance(module, _CONVOLUTIONS)), None)
    if first is None:
        return InputSize(size=_stated(model, 2))
    dimensions = len(first.kernel_size)
    return InputSize(first.in_channels, _stated(model, dimensions) or _by_positions(model, first))


def sides(value: Any, dimensions: int) -> tuple[int, ...] | None:
    """Return a size as one length per dimension, or None if `value` is not a size."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value,) * dimensions
    if not isinstance(value, Sequence) or len(value) != dimensions:
        return None
    return tuple(value) if all(isinstance(side, int) and side > 0 for side in value) else None


def _stated(model: nn.Module, dimensions: int) -> tuple[int, ...] | None:
    for module in (model, *_near_children(model)):
        for attribute in _SIZES:
            found = sides(getattr(module, attribute, None), dimensions)
            if found is not None:
                return found
    return None


def _near_children(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the children, then their children; deeper modules see parts of the image."""
    children = list(model.children())
    yield from children
    for child in children:
        yield from child.children()


def _by_positions(model: nn.Module, first: Any) -> tuple[int, ...] | None:
    """Return the size of square images with one patch per learned position, less one or two tokens."""
    if not isinstance(first, nn.Conv2d) or first.stride[0] < 2:
        return None
    for name, values in model.named_parameters():
        if "pos" not in name.rpartition(".")[2] + name.rpartition(".")[0].rpartition(".")[2]:
            continue
        if values.dim() not in (2, 3) or values.shape[-1] != first.out_channels or values.shape[:-2].numel() != 1:
            continue
        for tokens in range(3):
            count = max(0, values.shape[-2] - tokens)
            if count > 1 and math.isqrt(count) ** 2 == count:
                return (math.isqrt(count) * first.stride[0], math.isqrt(count) * first.stride[1])
    return None
