"""Tensors that are divided among processes, as `DTensor`s. A plain tensor is whole already."""

from __future__ import annotations

from torch import Tensor

from finetune.distributed.world import joined
from finetune.errors import ArgumentError


def is_divided(tensor: Tensor) -> bool:
    """Return whether a tensor is divided among processes, without an import of `torch.distributed.tensor`.

    Example:
        >>> import torch
        >>> is_divided(torch.arange(2))
        False
    """
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor, put together if it is divided among processes, which all call this.

    Example:
        >>> import torch
        >>> whole(torch.arange(2))
        tensor([0, 1])
    """
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def to_save(tensor: Tensor) -> Tensor:
    """Return a tensor as the first process saves it: a divided one is put together in the memory of the host.

    All processes call this. The others get a stand-in without memory, because a model may fill the memory of several.

    Example:
        >>> import torch
        >>> to_save(torch.arange(2))
        tensor([0, 1])
    """
    if not is_divided(tensor):
        return tensor
    together = whole(tensor.detach())
    return together.cpu() if joined().leads else together.to("meta")


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, which shares its memory.

    Example:
        >>> import torch
        >>> local(torch.arange(2))
        tensor([0, 1])
    """
    return tensor.to_local() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor on the device of another one, and divided as that one is.

    A tensor that is divided already has been divided in the same way, at most on another device.

    Example:
        >>> import torch
        >>> placed(torch.arange(2), like=torch.zeros(2))
        tensor([0, 1])
    """
    if not is_divided(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    if not is_divided(tensor):
        return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)
    moved = local(tensor).to(like.device)
    return DTensor.from_local(moved, mesh, placements, shape=tensor.shape, stride=tensor.stride())


def check_divided(divided: bool) -> None:
    """Check that there are divided weights, for a checkpoint of which each process writes a part.

    Raises:
        ArgumentError: If they are not.

    Example:
        >>> check_divided(False)
        Traceback (most recent call last):
        finetune.errors.ArgumentError: sharded=True needs weights that are divided among processes, ...
    """
    if not divided:
        raise ArgumentError(
            "sharded=True needs weights that are divided among processes, as during fit in several processes with "
            "FineTuner(..., distributed='fsdp'). Omit sharded to write a single file."
        )
