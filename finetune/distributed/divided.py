"""Tensors that are divided among processes, as `DTensor`s. A plain tensor is whole already."""

from __future__ import annotations

from torch import Tensor


def is_divided(tensor: Tensor) -> bool:
    """Return whether a tensor is divided among processes, without an import of `torch.distributed.tensor`.

    Example:
        >>> is_divided(torch.arange(2))
        False
    """
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor, put together if it is divided among processes, which all call this.

    Example:
        >>> whole(torch.arange(2))
        tensor([0, 1])
    """
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, which shares its memory.

    Example:
        >>> local(torch.arange(2))
        tensor([0, 1])
    """
    return tensor.to_local() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor on the device of another one, and divided as that one is.

    Example:
        >>> placed(torch.arange(2), like=torch.zeros(2))
        tensor([0, 1])
    """
    moved = tensor.to(like.device)
    if not is_divided(like) or is_divided(moved):
        return moved
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
