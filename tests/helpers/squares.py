"""Images with a square at a random place, whose color is the class."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE, SQUARE = 24, 6

_COLORS = torch.tensor([[1.0, 0.1, 0.1], [0.1, 1.0, 0.1], [0.1, 0.1, 1.0], [1.0, 1.0, 0.1]])


def squares(samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images [N, 3, 24, 24], their classes [N], and where their squares are, bool [N, 24, 24]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(samples, 3, SIDE, SIDE, generator=generator) / 2
    classes, inside = torch.arange(samples) % 4, torch.zeros(samples, SIDE, SIDE, dtype=torch.bool)
    corners = torch.randint(SIDE - SQUARE + 1, (samples, 2), generator=generator)
    for index, (row, column) in enumerate(corners.tolist()):
        inside[index, row : row + SQUARE, column : column + SQUARE] = True
    images = torch.where(inside[:, None], _COLORS[classes][:, :, None, None], images)
    return 3 * (images - 0.3), classes, inside


def peaks_inside(maps: Tensor, inside: Tensor) -> float:
    """Return the fraction of maps [N, H, W] whose largest value is in the square."""
    return float(inside.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True)).float().mean())
