"""Render stencils as images with random position, lighting, blur and noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# Normalization of images with values from 0 to 1.
_MEAN, _STD = 0.45, 0.25


@dataclass(frozen=True)
class Rendering:
    """Ranges of the random transformations that turn a stencil into an image.

    Attributes:
        turn: Largest rotation in degrees, either way.
        scale: Range of the stencil's scale, drawn separately for width and height.
        shear: Largest shear slope, either way.
        shift: Largest shift, as a fraction of the image's side.
        contrast: Range of the contrast between stencil and background.
        inverted: Fraction of images that are dark on light.
        gradient: Largest brightness gradient across the image.
        blur: Largest weight of a blurred copy that is mixed in.
        noise: Range of the standard deviation of Gaussian noise.
        specks: Fraction of pixels replaced by random values.
    """

    turn: float = 15
    scale: tuple[float, float] = (0.7, 1.1)
    shear: float = 0.2
    shift: float = 0.08
    contrast: tuple[float, float] = (0.45, 1.0)
    inverted: float = 0.0
    gradient: float = 0.2
    blur: float = 0.3
    noise: tuple[float, float] = (0.03, 0.15)
    specks: float = 0.0

    def render(self, stencils: Tensor, generator: torch.Generator) -> Tensor:
        """Return normalized images [N, 1, 16, 16] of stencils [N, 32, 32]."""

        def drawn(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(len(stencils), 1, 1, 1, generator=generator)

        ink = F.avg_pool2d(self._placed(stencils[:, None], drawn), 2)
        ink = ink.lerp(F.avg_pool2d(F.pad(ink, (1, 1, 1, 1), mode="replicate"), 3, 1), drawn(0, self.blur))
        ink = torch.where(drawn(0, 1) < self.inverted, 1 - ink, ink)
        contrast = drawn(*self.contrast)
        ramp = torch.linspace(-0.5, 0.5, ink.shape[-1])
        slope = self.gradient * (drawn(-1, 1) * ramp + drawn(-1, 1) * ramp[:, None])
        light = drawn(0, 1) * (1 - contrast) + contrast * ink + slope
        light = light + drawn(*self.noise) * torch.randn(light.shape, generator=generator)
        speck = torch.rand(light.shape, generator=generator) < self.specks
        light = torch.where(speck, torch.rand(light.shape, generator=generator), light)
        return (light.clamp(0, 1) - _MEAN) / _STD

    def shifted(self) -> Rendering:
        """Return a shifted distribution: more rotation and blur, less contrast, different noise."""
        return replace(
            self,
            turn=self.turn + 10,
            contrast=(0.3, 0.6),
            gradient=2 * self.gradient,
            blur=0.6,
            noise=(0.0, 0.1),
            specks=self.specks + 0.05,
        )

    def _placed(self, stencils: Tensor, drawn: Callable[[float, float], Tensor]) -> Tensor:
        """Rotate, scale, shear and shift the stencils [N, 1, 32, 32]."""
        turn = drawn(-1, 1) * math.radians(self.turn)
        wide, high = 1 / drawn(*self.scale), 1 / drawn(*self.scale)
        shear = drawn(-self.shear, self.shear)
        cos, sin = turn.cos(), turn.sin()
        x, y = drawn(-1, 1) * 2 * self.shift, drawn(-1, 1) * 2 * self.shift
        rows = [[cos * wide, (shear * cos - sin) * high, x], [sin * wide, (shear * sin + cos) * high, y]]
        matrix = torch.cat([torch.cat([value.flatten(1) for value in row], 1)[:, None] for row in rows], 1)
        grid = F.affine_grid(matrix, list(stencils.shape), align_corners=False)
        return F.grid_sample(stencils, grid, padding_mode="border", align_corners=False)


RENDERING = Rendering()
