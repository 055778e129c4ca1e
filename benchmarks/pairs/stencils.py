"""Stencils [N, 32, 32] with values from 0 to 1: the shapes of a class before position, lighting and noise.

`Drawn` stencils are unlimited. A `Pool` of real images is finite and uses each image at most once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.pairs.shapes import Corners

SIDE = 32

Part = Literal["train", "test"]


def generator(*key: object) -> torch.Generator:
    """Return a random generator seeded by the key, equal in every process."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big"))


class Stencils(Protocol):
    """Stencils of several classes, disjoint between `train` and `test`."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def available(self, name: str) -> float:
        """Return the number of stencils of a class, for training and testing together."""

    def draw(self, name: str, count: int, part: Part, seed: int) -> Tensor:
        """Return stencils [count, 32, 32] of a class. Both parts together must not exceed `available`."""


# ------------------------------------------------------------------ drawn stencils


@dataclass(frozen=True)
class Drawn:
    """Generated stencils, without limit.

    Attributes:
        classes: Names of the classes.
        make: Function of a class, a count and a generator that returns stencils [count, 32, 32].
    """

    classes: tuple[str, ...]
    make: Callable[[str, int, torch.Generator], Tensor]

    def available(self, name: str) -> float:
        return math.inf

    def draw(self, name: str, count: int, part: Part, seed: int) -> Tensor:
        return self.make(name, count, generator(name, part, seed))


@dataclass(frozen=True)
class Mixture:
    """The union of several sets of stencils with distinct class names."""

    parts: tuple[Stencils, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.classes)

    def available(self, name: str) -> float:
        return self._of(name).available(name)

    def draw(self, name: str, count: int, part: Part, seed: int) -> Tensor:
        return self._of(name).draw(name, count, part, seed)

    def _of(self, name: str) -> Stencils:
        return next(part for part in self.parts if name in part.classes)


# All ship with matplotlib. DejaVu and STIX include other alphabets; the rest have Latin letters only.
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic",
          "STIXGeneral", "STIXGeneralBol")  # fmt: skip
_LATIN_FONTS = (*_FONTS, "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmss10", "cmtt10", "cmti10", "cmb10")


def glyphs(text: str) -> Drawn:
    """Return a class per character, in several fonts and two weights."""

    def make(character: str, count: int, generator: torch.Generator) -> Tensor:
        variants = _glyph(character)
        return variants[torch.randint(len(variants), (count,), generator=generator)]

    return Drawn(tuple(text), make)


@cache
def _glyph(character: str) -> Tensor:
    """Return a character in every font and weight, [variants, 32, 32]."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    variants = []
    for name in _LATIN_FONTS if character.isascii() else _FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 24)
        for stroke in (0, 1):
            image = Image.new("L", (SIDE, SIDE))
            pen = ImageDraw.Draw(image)
            left, top, right, bottom = pen.textbbox((0, 0), character, font=font, stroke_width=stroke)
            corner = (SIDE - left - right) / 2, (SIDE - top - bottom) / 2
            pen.text(corner, character, fill=255, font=font, stroke_width=stroke)
            variants.append(_tensor(image))
    return torch.stack(variants)


def shapes(corners: Mapping[str, Corners]) -> Drawn:
    """Return a class per shape, filled or outlined."""

    def make(name: str, count: int, generator: torch.Generator) -> Tensor:
        variants = _shape(tuple(corners[name]))
        return variants[torch.randint(len(variants), (count,), generator=generator)]

    return Drawn(tuple(corners), make)


@cache
def _shape(corners: tuple[tuple[float, float], ...], finer: int = 4) -> Tensor:
    """Return a shape filled and in two widths of outline, [3, 32, 32]."""
    middle, radius = finer * SIDE / 2, finer * SIDE * 0.4
    points = [(middle + radius * x, middle + radius * y) for x, y in corners]
    variants = []
    for fill, width in ((255, 1), (None, 2 * finer), (None, 4 * finer)):
        image = Image.new("L", (finer * SIDE, finer * SIDE))
        ImageDraw.Draw(image).polygon(points, fill=fill, outline=255, width=width)
        variants.append(_tensor(image.reduce(finer)))
    return torch.stack(variants)


def _tensor(image: Image.Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width) / 255


_TEXTURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rows": lambda u, v: v.sin(),
    "columns": lambda u, v: u.sin(),
    "rising": lambda u, v: (0.7 * (u + v)).sin(),
    "falling": lambda u, v: (0.7 * (u - v)).sin(),
    "checks": lambda u, v: u.sin() * v.sin(),
    "dots": lambda u, v: u.cos() + v.cos() - 0.8,
    "holes": lambda u, v: 0.8 - u.cos() - v.cos(),
    "rings": lambda u, v: torch.hypot(u, v).sin(),
    "waves": lambda u, v: (v + 2 * (u / 2).sin()).sin(),
    "grid": lambda u, v: 0.3 - torch.minimum((u / 1.5).sin().abs(), (v / 1.5).sin().abs()),
    "plaid": lambda u, v: u.sin() + v.sin() + 0.4,
    "zigzag": lambda u, v: (v + 2 * (u / 2).sin().asin()).sin(),
}


def textures() -> Drawn:
    """Return a class per pattern, with random phase and scale and a slight tilt."""
    steps = torch.arange(SIDE, dtype=torch.float32)
    y, x = torch.meshgrid(steps, steps, indexing="ij")

    def make(name: str, count: int, generator: torch.Generator) -> Tensor:
        scale, left, top, tilt = torch.rand(4, count, 1, 1, generator=generator)
        scale, tilt = 0.35 + 0.45 * scale, 0.3 * (tilt - 0.5)
        left, top = SIDE * (left - 1), SIDE * (top - 1)
        u, v = scale * (x + left - tilt * y), scale * (y + top + tilt * x)
        return (0.5 + 2 * _TEXTURES[name](u, v)).clamp(0, 1)

    return Drawn(tuple(_TEXTURES), make)


# ------------------------------------------------------------------ real images


@dataclass(frozen=True)
class Pool:
    """Real images.

    Attributes:
        load: Function that returns the images [N, 32, 32] of every class.
    """

    classes: tuple[str, ...]
    load: Callable[[], Mapping[str, Tensor]]

    def available(self, name: str) -> float:
        return len(self.load()[name])

    def draw(self, name: str, count: int, part: Part, seed: int) -> Tensor:
        images = self.load()[name]
        order = torch.randperm(len(images), generator=generator(name, seed))
        return images[(order if part == "test" else order.flip(0))[:count]]


def digits(names: str) -> Pool:
    """Return scikit-learn's handwritten digits, about 178 per class."""
    return Pool(tuple(names), _digits)


@cache
def _digits() -> dict[str, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float() / 16  # [1797, 8, 8]
    larger = F.interpolate(images[:, None], size=(26, 26), mode="bilinear")[:, 0]
    framed = F.pad(larger, (3, 3, 3, 3))
    return {str(digit): framed[torch.from_numpy(found.target == digit)] for digit in range(10)}


# Regions of scikit-learn's two photographs, in rows and columns of 16 x 16 patches.
_REGIONS = {
    "sky": ("china.jpg", slice(0, 12), slice(22, 40)),
    "tower": ("china.jpg", slice(4, 20), slice(6, 20)),
    "trees": ("china.jpg", slice(19, 26), slice(14, 40)),
    "petals": ("flower.jpg", slice(7, 21), slice(12, 27)),
    "shadow": ("flower.jpg", slice(0, 26), slice(0, 10)),
}


def photographs() -> Pool:
    """Return non-overlapping patches of photographs, with a class per region."""
    return Pool(tuple(_REGIONS), _photographs)


@cache
def _photographs(patch: int = 16) -> dict[str, Tensor]:
    from sklearn.datasets import load_sample_image

    regions = {}
    for name, (file, rows, columns) in _REGIONS.items():
        grey = torch.from_numpy(load_sample_image(file).copy()).float().mean(2) / 255  # [427, 640]
        patches = grey.unfold(0, patch, patch).unfold(1, patch, patch)[rows, columns]  # [rows, columns, 16, 16]
        regions[name] = F.interpolate(patches.reshape(-1, 1, patch, patch), scale_factor=SIDE // patch)[:, 0]
    return regions
