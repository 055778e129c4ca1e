"""Copies of a model that share or lack its tensors: its structure for no memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn


def with_same_tensors(model: nn.Module) -> nn.Module:
    """Copy the modules of a model but none of its tensors."""
    return _twin(model, lambda tensor: tensor)


def without_memory(model: nn.Module) -> nn.Module:
    """Copy the modules of a model, with tensors that have a shape and a dtype but no values."""
    return _twin(model, _shape_of)


def _twin(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(tensor): change(tensor) for tensor in tensors})


def _shape_of(tensor: Tensor) -> Tensor:
    shape = tensor.detach().to("meta")
    return nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape
