"""Shapes that benchmarks draw, as corners in coordinates from -1 to 1."""

from __future__ import annotations

import math

Corners = list[tuple[float, float]]


def star(points: int, inner: float, turn: float = 0.0) -> Corners:
    """Return the corners of a star of radius 1. With an inner radius of 1, it is a regular polygon."""
    return [
        (radius * math.sin(angle), -radius * math.cos(angle))
        for k in range(2 * points)
        for radius, angle in [((inner if k % 2 else 1.0), math.pi * k / points + turn)]
    ]


SHAPES: dict[str, Corners] = {
    "triangle": star(3, 0.5),
    "cross": [(-1, -0.3), (-0.3, -0.3), (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3),
              (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3)],
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "star": star(5, 0.4),
    "disc": star(20, 1.0),
    "arrow": [(-1, -0.25), (0.1, -0.25), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.25), (-1, 0.25)],
    "letter L": [(-0.7, -1), (-0.2, -1), (-0.2, 0.5), (0.7, 0.5), (0.7, 1), (-0.7, 1)],
    "letter T": [(-0.9, -1), (0.9, -1), (0.9, -0.5), (0.25, -0.5), (0.25, 1), (-0.25, 1), (-0.25, -0.5), (-0.9, -0.5)],
    "hexagram": star(6, 0.5),
    "house": [(-0.7, 1), (-0.7, -0.2), (0, -1), (0.7, -0.2), (0.7, 1)],
}  # fmt: skip
