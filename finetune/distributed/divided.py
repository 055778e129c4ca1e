"""Tensors that are divided among processes, as `DTensor`s. A plain tensor is whole already."""

from __future__ import annotations

from torch import Tensor

from finetune.distributed.world import joined


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
    """Return a whole tensor on the device of another one, and divided as that one is.

    Example:
        >>> import torch
        >>> placed(torch.arange(2), like=torch.zeros(2))
        tensor([0, 1])
    """
    moved = tensor.to(like.device)
    if not is_divided(like) or is_divided(moved):
        return moved
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
