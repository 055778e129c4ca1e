"""Groups of samples that no split divides, each given by a number per sample."""

from __future__ import annotations

import torch
from torch import Tensor


def firsts(groups: Tensor) -> Tensor:
    """Return the position of the first sample of each sample's group, int64 [N].

    Args:
        groups: Number of the group of each sample, int64 [N], none negative.

    Example:
        >>> firsts(torch.tensor([7, 3, 7, 3, 5])).tolist()
        [0, 1, 0, 1, 4]
    """
    positions = torch.arange(len(groups))
    least = torch.full((int(groups.max()) + 1 if len(groups) else 0,), len(groups))
    return least.scatter_reduce(0, groups, positions, "amin")[groups]


def joined(one: Tensor, other: Tensor) -> Tensor:
    """Return the smallest groups that contain every group of both, as the position of their first sample, int64 [N].

    Args:
        one: Groups, int64 [N].
        other: Groups of the same samples, int64 [N].

    Example:
        >>> joined(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2])).tolist()
        [0, 0, 0, 3]
    """
    one, other = firsts(one), firsts(other)
    least = torch.arange(len(one))
    while True:
        before = least
        for groups in (one, other):
            least = torch.full_like(least, len(least)).scatter_reduce(0, groups, least, "amin")[groups]
        if torch.equal(least, before):
            return least
