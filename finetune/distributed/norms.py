"""Batch norms that take the statistics of the batches of all processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

# `SyncBatchNorm` does what these do, with statistics over the processes. A subclass may do more.
_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def can_join_norms(device: torch.device) -> bool:
    """Return whether torch computes statistics over several processes on a device: it does so on CUDA.

    Example:
        >>> can_join_norms(torch.device("cpu"))
        False
    """
    return device.type == "cuda"


def join_norms(model: nn.Module) -> Callable[[], None]:
    """Make the batch norms of a model `SyncBatchNorm`s, in place, and return a function that undoes it.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> undo = join_norms(model)
        >>> type(model[1]).__name__
        'SyncBatchNorm'
        >>> undo()
        >>> type(model[1]).__name__
        'BatchNorm2d'
    """
    kinds = {module: type(module) for module in model.modules() if type(module) in _KINDS}
    for module in kinds:
        module.__class__ = nn.SyncBatchNorm
        module.process_group = None  # type: ignore[assignment]

    def undo() -> None:
        while kinds:  # empty if it is called again
            module, kind = kinds.popitem()
            module.__class__ = kind
            del module.process_group

    return undo
