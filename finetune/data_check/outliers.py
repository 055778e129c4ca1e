"""Outliers: samples that are far from all others, compared with the distances that are usual in the data."""

from __future__ import annotations

import torch
from torch import Tensor

_NEAREST = 5  # neighbors whose mean distance counts
_DEVIATIONS = 5.0  # robust standard deviations of the logarithm of the distance
_FEWEST = 30  # samples that say which distances are usual

_NORMAL = 1.4826  # standard deviation of a normal distribution with a median absolute deviation of 1


def robust_scores(values: Tensor) -> Tensor:
    """Return the distance of each value from the median, in standard deviations estimated from the middle half.

    NaN values are left out, and their scores are 0.

    Args:
        values: Float [N].

    Example:
        >>> robust_scores(torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0]))
        tensor([-1.3490, -0.6745,  0.0000,  0.6745, 65.4256])
    """
    known = values.isfinite()
    if not known.any():
        return torch.zeros_like(values)
    centered = values - values[known].median()
    spread = _NORMAL * centered[known].abs().median()
    return torch.where(known, centered / spread.clamp_min(1e-9), 0.0)


def outliers(distances: Tensor) -> list[tuple[int, float]]:
    """Return the outliers, the farthest first, each with its distance as a multiple of the median.

    Args:
        distances: Distances to the nearest other samples, float [N, K], the nearest first.

    Example:
        >>> distances = torch.linspace(0.9, 1.1, 40)[:, None].clone()
        >>> distances[7] = 3
        >>> outliers(distances)
        [(7, 2.99)]
    """
    if len(distances) < _FEWEST or not distances.shape[1]:
        return []
    mean = distances[:, :_NEAREST].mean(1)
    scores = robust_scores(mean.clamp_min(1e-12).log())
    rows = (scores > _DEVIATIONS).nonzero().flatten()
    rows = rows[mean[rows].argsort(descending=True, stable=True)]
    usual = float(mean.median())
    return [(row, round(float(mean[row]) / max(usual, 1e-12), 2)) for row in rows.tolist()]
