"""Worlds of classes: what backbones are trained on, and what they move to."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.pairs import stencils
from benchmarks.pairs.looks import LOOK, Look
from benchmarks.pairs.stencils import Stencils
from benchmarks.shapes import SHAPES, Corners, star


@dataclass(frozen=True)
class World:
    """Classes, and how their pictures look."""

    name: str
    stencils: Stencils
    look: Look = LOOK

    @property
    def classes(self) -> tuple[str, ...]:
        return self.stencils.classes


_OTHER_SHAPES: dict[str, Corners] = {
    "pentagon": star(5, 0.82),
    "octagon": star(8, 0.93),
    "four points": star(4, 0.4),
    "seven points": star(7, 0.5),
    "kite": [(0, -1), (0.6, -0.3), (0, 1), (-0.6, -0.3)],
    "chevron": [(-0.8, -1), (0.2, -1), (0.9, 0), (0.2, 1), (-0.8, 1), (-0.1, 0)],
    "trapezoid": [(-0.5, -0.7), (0.5, -0.7), (1, 0.7), (-1, 0.7)],
    "parallelogram": [(-0.4, -0.7), (1, -0.7), (0.4, 0.7), (-1, 0.7)],
    "half disc": [*star(20, 1.0)[:21]],
    "bolt": [(0.2, -1), (-0.7, 0.2), (-0.1, 0.2), (-0.3, 1), (0.7, -0.3), (0.1, -0.3)],
}

# What fills the picture is never smaller than it.
_FILLING = Look(scale=(1.05, 1.5), shift=0.05)

_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

CAPITALS = World("capitals", stencils.glyphs(_CAPITALS))
LETTERS = World("letters", stencils.glyphs(_CAPITALS + "abdefghjmnqrty"))  # no small one that is like its capital
SMALL_LETTERS = World("small letters", stencils.glyphs("abdeghnqrt"))
GREEK = World("greek letters", stencils.glyphs("αβγδζλξπφψ"))
CYRILLIC = World("cyrillic letters", stencils.glyphs("БДЖИЛФЦШЮЯ"))
SYMBOLS = World("mathematical symbols", stencils.glyphs("∈⊂≤≥∇⊕∑∂√≠"))
FIGURES = World("shapes", stencils.shapes(SHAPES))
OTHER_SHAPES = World("other shapes", stencils.shapes(_OTHER_SHAPES))
TEXTURES = World("textures", stencils.textures(), _FILLING)
EVERYTHING = World(
    "everything",
    stencils.Mixture((LETTERS.stencils, stencils.glyphs("23456789"), FIGURES.stencils, TEXTURES.stencils)),
)
DIGITS = World("handwritten digits", stencils.digits("0123456789"))
SMALL_DIGITS = World("handwritten 0-4", stencils.digits("01234"))
LARGE_DIGITS = World("handwritten 5-9", stencils.digits("56789"))
PHOTOGRAPHS = World(
    "photographs",
    stencils.photographs(),
    Look(scale=(1.0, 1.3), shift=0.05, contrast=(0.7, 1.0), gradient=0.1, noise=(0.0, 0.08)),
)
