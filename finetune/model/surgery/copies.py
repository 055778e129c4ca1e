"""Copy a model's structure without copying its tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn


def shared_copy(model: nn.Module) -> nn.Module:
    """Copy the modules of a model and share its tensors.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> shared_copy(layer).weight is layer.weight
        True
    """
    return _copy(model, lambda tensor: tensor)


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device, where tensors have a shape and a dtype but no memory.

    Example:
        >>> meta_copy(nn.Linear(2, 2)).weight.device
        device(type='meta')
    """
    return _copy(model, _to_meta)


def _copy(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(tensor): convert(tensor) for tensor in tensors})


def _to_meta(tensor: Tensor) -> Tensor:
    value = tensor.detach().to("meta")
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
