"""Agreement of small gray copies of pictures, which a re-encoded, resized, cropped or brighter copy keeps.

Two measures are used. The correlation of the tiles follows large areas of light, which many pictures of a class share;
that of their details, after a blurred copy is subtracted, hardly any two pictures share. Neither changes with
brightness or contrast. A crop is found by search over windows of one tile, refined along the gradient.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

_BLUR = 3.0  # standard deviation of the blur, in pixels of a tile
_TILES_AT_ONCE = 2048  # 60 KB each while they are blurred
_SMALLEST = 0.7  # side of a window that still counts as the same picture
_SCALES = (1.0, 0.9, 0.8)
_STEPS, _RATE = 20, 0.01  # of the refinement
_COLOR_GAP = 0.06  # mean difference of the shares of red, green and blue


def unit(tiles: Tensor) -> Tensor:
    """Return tiles [N, H, W] as centered vectors of unit length, float32 [N, H * W]; zeros for a constant one."""
    flat = tiles.flatten(1).float()
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def details(tiles: Tensor) -> Tensor:
    """Return tiles [N, H, W] without their large areas of light, float32."""
    reach = round(3 * _BLUR)
    positions = torch.arange(-reach, reach + 1).float()
    weights = torch.exp(-positions.square() / (2 * _BLUR**2))
    weights = weights / weights.sum()
    found = []
    for part in tiles.split(_TILES_AT_ONCE):
        padded = F.pad(part.float()[:, None], (reach,) * 4, mode="reflect")
        blurred = F.conv2d(F.conv2d(padded, weights[None, None, :, None]), weights[None, None, None, :])
        found.append(part.float() - blurred[:, 0])
    return torch.cat(found)


def same_colors(first: Tensor, second: Tensor) -> Tensor:
    """Return whether pictures have the same colors up to their brightness, bool [N], of uint8 [N, H, W, 3]."""

    def shares(colors: Tensor) -> Tensor:
        light = colors.float() + 8  # in darkness, colors are noise
        return light / light.sum(3, keepdim=True)

    return (shares(first) - shares(second)).abs().mean((1, 2, 3)) * 3 < _COLOR_GAP


def best_windows(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coarse window of each tile that agrees most with the other, [N, 4], and its correlation, float [N].

    Args:
        first: Tiles of which windows are taken, [N, H, W].
        second: Tiles, [N, H, W].
    """
    wanted, windows = unit(second), _windows()
    agreements = [(unit(_cut(first, window.expand(len(first), 4))) * wanted).sum(1) for window in windows]
    best = torch.stack(agreements).max(0)
    return windows[best.indices], best.values


def refined(first: Tensor, second: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the correlation of each tile with the best window near a coarse one, and that of the details, float [N].

    Args:
        first: Tiles of which windows are taken, [N, H, W].
        second: Tiles, [N, H, W].
        windows: Coarse windows, [N, 4].
    """
    wanted = unit(second)

    def agreement(window: Tensor) -> tuple[Tensor, Tensor]:
        each = (unit(_cut(first, window)) * wanted).sum(1)
        return each.sum(), each

    window, best, highest = windows, windows, torch.full((len(first),), -1.0)
    motion = torch.zeros_like(windows)
    for _ in range(_STEPS):
        slope, agreements = torch.func.grad(agreement, has_aux=True)(window)
        better = agreements > highest
        best, highest = torch.where(better[:, None], window, best), torch.where(better, agreements, highest)
        motion = 0.9 * motion + slope
        window = _within(window + _RATE * motion.sign())
    cut = _cut(first, best)
    return highest, (unit(details(cut)) * unit(details(second))).sum(1)


def _within(windows: Tensor) -> Tensor:
    """Return windows that are large enough and do not leave the tile."""
    sides = windows[:, :2].clamp(_SMALLEST, 1)
    return torch.cat([sides, windows[:, 2:].clamp(sides - 1, 1 - sides)], 1)


def _windows() -> Tensor:
    """Return windows [K, 4]: width and height as shares of a tile, and offsets of the center in half widths."""
    found = []
    for width, height in itertools.product(_SCALES, repeat=2):
        for across, down in itertools.product((-1, 0, 1), repeat=2):
            found.append((width, height, across * (1 - width), down * (1 - height)))
    return torch.tensor(list(dict.fromkeys(found)))


def _cut(tiles: Tensor, windows: Tensor) -> Tensor:
    """Return a window [N, 4] of each tile, resized to the size of the tile."""
    width, height, across, down = windows.T
    zero = torch.zeros_like(width)
    maps = torch.stack([torch.stack([width, zero, across], 1), torch.stack([zero, height, down], 1)], 1)
    grid = F.affine_grid(maps, [len(tiles), 1, *tiles.shape[1:]], align_corners=False)
    return F.grid_sample(tiles.float()[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
