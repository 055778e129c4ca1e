"""Nearest neighbors of every sample, a block of rows at a time, so that no N x N matrix is ever in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.display.progress.waits import announced

_DISTANCES_AT_ONCE = 2**25  # 128 MB


def directions(vectors: Tensor) -> Tensor:
    """Return centered vectors [N, D] of unit length, float32. Constant columns, and vectors of length 0, stay 0."""
    centered = vectors.float() - vectors.float().mean(0)
    return torch.nn.functional.normalize(centered, dim=1)


def nearest_neighbors(vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the distance and the index of the nearest other samples, each [N, count], the nearest first.

    Args:
        vectors: Float32 [N, D].
        count: Number of neighbors; all others if there are fewer.

    Example:
        >>> distances, indices = nearest_neighbors(torch.tensor([[0.0], [1.0], [3.0]]), 1)
        >>> distances.flatten().tolist(), indices.flatten().tolist()
        ([1.0, 1.0, 2.0], [1, 0, 1])
    """
    count = max(0, min(count, len(vectors) - 1))
    squares = vectors.square().sum(1)
    blocks = torch.arange(len(vectors)).split(max(1, _DISTANCES_AT_ONCE // max(1, len(vectors))))
    found = []
    for rows in announced(blocks, "Comparing samples", len(blocks)):
        distances = torch.addmm(squares + squares[rows, None], vectors[rows], vectors.T, alpha=-2)
        distances[torch.arange(len(rows)), rows] = torch.inf  # the sample itself
        found.append(distances.topk(count, largest=False))
    values, indices = (torch.cat(parts) if parts else torch.empty(0, count) for parts in zip(*found, strict=True))
    return values.clamp_min(0).sqrt(), indices
