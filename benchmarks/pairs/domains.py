"""The source and target domains of the pairs."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.pairs import stencils
from benchmarks.pairs.rendering import RENDERING, Rendering
from benchmarks.pairs.shapes import SHAPES, Corners, star
from benchmarks.pairs.stencils import Stencils


@dataclass(frozen=True)
class Domain:
    """A set of classes, given by their stencils, and the rendering of its images."""

    name: str
    stencils: Stencils
    rendering: Rendering = RENDERING

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

# Textures always cover the whole image.
_FILLING = Rendering(scale=(1.05, 1.5), shift=0.05)

_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

CAPITALS = Domain("capitals", stencils.glyphs(_CAPITALS))
# Without small letters that resemble their capitals.
LETTERS = Domain("letters", stencils.glyphs(_CAPITALS + "abdefghjmnqrty"))
SMALL_LETTERS = Domain("small letters", stencils.glyphs("abdeghnqrt"))
GREEK = Domain("greek letters", stencils.glyphs("αβγδζλξπφψ"))
CYRILLIC = Domain("cyrillic letters", stencils.glyphs("БДЖИЛФЦШЮЯ"))
SYMBOLS = Domain("mathematical symbols", stencils.glyphs("∈⊂≤≥∇⊕∑∂√≠"))
FIGURES = Domain("shapes", stencils.shapes(SHAPES))
OTHER_SHAPES = Domain("other shapes", stencils.shapes(_OTHER_SHAPES))
TEXTURES = Domain("textures", stencils.textures(), _FILLING)
EVERYTHING = Domain(
    "everything",
    stencils.Mixture((LETTERS.stencils, stencils.glyphs("23456789"), FIGURES.stencils, TEXTURES.stencils)),
)
DIGITS = Domain("handwritten digits", stencils.digits("0123456789"))
SMALL_DIGITS = Domain("handwritten 0-4", stencils.digits("01234"))
LARGE_DIGITS = Domain("handwritten 5-9", stencils.digits("56789"))
PHOTOGRAPHS = Domain(
    "photographs",
    stencils.photographs(),
    Rendering(scale=(1.0, 1.3), shift=0.05, contrast=(0.7, 1.0), gradient=0.1, noise=(0.0, 0.08)),
)
