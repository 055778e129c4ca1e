"""Run convolutional models in the channels_last memory format, in which convolutions are faster.

Only the weights change their layout (`torch.channels_last`). Every convolution passes its layout on to its
output, and the first accepts images in either layout, so inputs need no change. The order of summation
changes, so results differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.devices.device import has_own_memory
from finetune.model.freezing import eval_mode, train_mode
from finetune.model.outputs import call
from finetune.nested import tensors_of

# Relative error. A kernel that wrongly assumes a contiguous input is off by far more.
_ROUNDING = 0.1


def gains_from_channels_last(model: nn.Module, device: torch.device, *, trains_all: bool = False) -> bool:
    """Return whether the model has convolutions that are faster in channels_last on this device.

    Convolutions of size 1, and those that only cut an image into patches, gain nothing.

    Args:
        trains_all: Whether gradients flow through the whole model. On CPUs with AVX2 but not AVX-512, the backward
            pass loses about as much time as the forward pass gains: 2.5 s instead of 2.2 s for ResNet-18 on 32
            images of 160 pixels, against 0.9 s instead of 1.2 s.
    """
    if has_own_memory(device):
        fast = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (7, 0)  # has tensor cores
    else:
        fast = device.type == "cpu" and torch.backends.mkldnn.is_available()
        fast = fast and not (trains_all and torch.backends.cpu.get_cpu_capability() == "AVX2")
    kernels = [(m.kernel_size, m.stride) for m in model.modules() if isinstance(m, nn.Conv2d)]
    return fast and any(size not in ((1, 1), stride) for size, stride in kernels)


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Keep the weights of 2-d convolutions in channels_last, and move them back to their original memory on exit.

    Parameters stay the same objects. Other references to their memory see the new values after the exit.
    """
    before = [(p, p.data) for p in model.parameters() if type(p.data) is Tensor and _changes_layout(p)]
    for parameter, data in before:
        parameter.data = data.clone(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter, data in before:
            parameter.data = data.copy_(parameter.data)


def same_in_channels_last(model: nn.Module, example: Any, output: Any, *, trains: bool) -> bool:
    """Return whether the model gives the same results in channels_last.

    A `view` of an activation or a custom kernel may need the contiguous layout. The trial draws random numbers and
    may change modes and buffers; the caller restores them.

    Args:
        example: Two samples that the model accepts.
        output: Output of the model for `example` in eval mode and its current layout.
        trains: Whether to try a forward and backward pass in train mode too.
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
    except Exception:  # models raise anything on an unexpected layout
        return False
    expected = tensors_of(output)
    return len(results) == len(expected) and all(map(_close, results, expected))


def _try_backward(model: nn.Module, example: Any) -> None:
    """Run a backward pass through the whole model, frozen or not."""
    zero = torch.zeros((), requires_grad=True, device=next(model.parameters()).device)
    results = tensors_of(call(model, _plus(example, zero)))
    total = torch.stack([result.float().sum() for result in results if result.requires_grad]).sum()
    torch.autograd.grad(total, zero, allow_unused=True)


def _plus(inputs: Any, zero: Tensor) -> Any:
    """Return the inputs with `zero` added to each floating-point tensor, so that gradients reach it."""
    if isinstance(inputs, Tensor):
        return inputs + zero if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {name: _plus(value, zero) for name, value in inputs.items()}
    return type(inputs)(_plus(value, zero) for value in inputs) if type(inputs) in (tuple, list) else inputs


def _changes_layout(parameter: Tensor) -> bool:
    """Return whether a tensor of four dimensions is in the usual order.

    A kernel of size 1 is in both orders. Its strides change too, to those of its gradient, as DistributedDataParallel
    expects.
    """
    return parameter.dim() == 4 and parameter.is_contiguous()


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    difference = (one.float() - other.float()).norm()
    return bool(difference <= _ROUNDING * other.float().norm())
