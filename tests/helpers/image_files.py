"""Images on disk, small and all different."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def picture(seed: int, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Image.Image:
    """Return noise of `size` (width, height)."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def labeled_images(n: int = 12) -> tuple[Tensor, Tensor]:
    """Return noise images [n, 3, 6, 6] and class indices [n] of three classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 6, 6, generator=generator), torch.arange(n) % 3
