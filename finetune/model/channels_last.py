"""The layout of convolutional models: with the channels of a pixel side by side, convolutions are faster.

Only weights are laid out so (`torch.channels_last`). Every convolution hands its layout on to its result,
and the first takes pictures in either, so that inputs stay as the user knows them. Values do not change,
but sums are taken in another order, and so results in the last digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.model.freezing import eval_mode, train_mode
from finetune.model.outputs import call
from finetune.nested import tensors_of

# A kernel that takes an input for contiguous without asking gives results that are off by far more.
_ROUNDING = 0.1


def gains_from_channels_last(model: nn.Module, device: torch.device, *, trains_all: bool = False) -> bool:
    """Tell whether the model has convolutions that run faster so; one that only cuts into patches does not.

    Args:
        trains_all: gradients go back through all of it. On CPUs with AVX2 and no more the backward pass is slower
            so, by about what the forward pass gains: 2.5 against 2.2 s for 32 pictures of 160 pixels with ResNet-18,
            and 0.9 against 1.2 s forward.
    """
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (7, 0)  # those with tensor cores
    else:
        fast = device.type == "cpu" and torch.backends.mkldnn.is_available()
        fast = fast and not (trains_all and torch.backends.cpu.get_cpu_capability() == "AVX2")
    kernels = [(m.kernel_size, m.stride) for m in model.modules() if isinstance(m, nn.Conv2d)]
    return fast and any(size not in ((1, 1), stride) for size, stride in kernels)


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Hold the weights of 2-d convolutions in channels_last; at the end they are where they were before.

    Parameters stay the same objects. What else refers to their memory sees their values at the end.
    """
    before = [(p, p.data) for p in model.parameters() if type(p.data) is Tensor and _turns(p)]
    for parameter, data in before:
        parameter.data = data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter, data in before:
            parameter.data = data.copy_(parameter.data)


def same_in_channels_last(model: nn.Module, example: Any, output: Any, *, trains: bool) -> bool:
    """Tell whether the model can be laid out so: a `view` of a result, or a kernel of one's own, may be in the way.

    Draws random numbers, and leaves modes and buffers as the model does.

    Args:
        example: inputs that the model accepts, two samples.
        output: what it gives for them in eval mode as it is laid out now.
        trains: also try a step, forward and backward.
    """
    try:
        with channels_last(model):
            eval_mode(model)
            with torch.no_grad():
                results = tensors_of(call(model, example))
            if trains:
                train_mode(model)
                with torch.enable_grad():
                    _try_backward(model, example)
    except Exception:  # whatever a model raises on results that are laid out in another way
        return False
    expected = tensors_of(output)
    return len(results) == len(expected) and all(map(_near, results, expected))


def _try_backward(model: nn.Module, example: Any) -> None:
    """Let gradients flow back through all of the model, whatever of it is frozen now."""
    zero = torch.zeros((), requires_grad=True, device=next(model.parameters()).device)
    results = tensors_of(call(model, _plus(example, zero)))
    total = torch.stack([result.float().sum() for result in results if result.requires_grad]).sum()
    torch.autograd.grad(total, zero, allow_unused=True)


def _plus(inputs: Any, zero: Tensor) -> Any:
    if isinstance(inputs, Tensor):
        return inputs + zero if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {name: _plus(value, zero) for name, value in inputs.items()}
    return type(inputs)(_plus(value, zero) for value in inputs) if type(inputs) in (tuple, list) else inputs


def _turns(parameter: Tensor) -> bool:
    """Tell whether channels_last is another order in memory than the present one."""
    plain = parameter.dim() == 4 and parameter.is_contiguous()
    return plain and not parameter.is_contiguous(memory_format=torch.channels_last)


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    difference = (one.float() - other.float()).norm()
    return bool(difference <= _ROUNDING * other.float().norm())
