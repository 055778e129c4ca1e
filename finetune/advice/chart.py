"""`Quadrant`: the chart of data size and distance from the pretraining domain, with a strategy per quadrant.

Its boundaries and strategies were fitted by `python -m benchmarks.advice.fit` on half of the transfers of
`benchmarks.advice`, between small convolutional networks. The benchmark's table reports the other half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.advice.evidence import Evidence
from finetune.display.figures import drawing, plain, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR = 0.5  # accuracy of a linear probe above chance
MUCH = 8.0  # samples per class

_AXIS_LIMIT = 10_000.0  # samples per class


@dataclass(frozen=True)
class Quadrant:
    """A quadrant of the chart with its recommendation.

    Attributes:
        much: Whether there is much data.
        near: Whether the data is near the pretraining domain.
        strategy: Recommended strategy.
        first_share: Recommended learning rate of the first stage as a fraction of the head's, or None for the
            default rates.
        gain: Mean gain in accuracy over a linear probe.
        right: Fraction of benchmarks in which the strategy came within a point of the best one, with add-one
            smoothing, so that a few benchmarks never give certainty.
    """

    much: bool
    near: bool
    strategy: str
    first_share: float | None
    gain: float
    right: float

    @property
    def name(self) -> str:
        """Short name, such as `"fewer than 8 samples per class, near"`."""
        size = f"{MUCH:.0f} or more" if self.much else f"fewer than {MUCH:.0f}"
        return f"{size} samples per class, {'near' if self.near else 'far'}"

    @property
    def description(self) -> str:
        """Full name, such as `"fewer than 8 samples per class, near the pretraining domain"`."""
        return f"{self.name} {'' if self.near else 'from '}the pretraining domain"

    def advises_as(self, other: Quadrant) -> bool:
        """Return whether another quadrant gives the same recommendation."""
        return (self.strategy, self.first_share) == (other.strategy, other.first_share)


QUADRANTS = (
    Quadrant(much=False, near=False, strategy="lp_ft", first_share=0.1, gain=0.062, right=0.81),
    Quadrant(much=False, near=True, strategy="last_stage", first_share=None, gain=0.007, right=0.71),
    Quadrant(much=True, near=False, strategy="lp_ft", first_share=0.1, gain=0.170, right=0.98),
    Quadrant(much=True, near=True, strategy="lp_ft", first_share=None, gain=0.035, right=0.83),
)


def quadrant(samples_per_class: float, nearness: float) -> Quadrant:
    """Return the quadrant that contains a point of the chart."""
    place = (samples_per_class >= MUCH, nearness >= NEAR)
    return next(each for each in QUADRANTS if (each.much, each.near) == place)


def draw(
    evidence: Evidence, title: str, found: str = "", path: str | Path | None = None, theme: str | None = None
) -> Figure:
    """Draw the chart with the data as a point, and the interval of its probe as an error bar.

    Args:
        evidence: The measurements.
        title: Title of the chart.
        found: Name of the quadrant to shade.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `new_figure`.
    """
    x = min(max(evidence.nearness, 0.0), 1.0)
    y = min(max(evidence.samples_per_class, 1.0), _AXIS_LIMIT)
    low, high = (min(max(evidence.above_chance(end), 0.0), 1.0) for end in evidence.interval)
    with drawing(6.8, 4.6, path, theme) as (figure, look):
        axes = figure.subplots()
        axes.grid(visible=False)
        for each in QUADRANTS:
            here = each.name == found
            (left, right), (bottom, top) = (NEAR, 1) if each.near else (0, NEAR), _heights(each.much)
            if here:
                axes.axvspan(left, right, bottom, top, color=look.band, linewidth=0, zorder=0)
            rates = "" if each.first_share is None else ", larger rates"
            # At the end of the quadrant that is farther from the data, whose error bar may cross the quadrant.
            place = max(bottom + 0.06, top - 0.06, key=lambda end: abs(end - _height(y)))
            axes.text(
                (left + right) / 2,
                place,
                f"{each.strategy}{rates}",
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="center",
                color=look.text if here else look.faint,
                fontweight="bold" if here else "normal",
            )
        axes.axvline(NEAR, color=look.faint, linewidth=0.8, zorder=1)
        axes.axhline(MUCH, color=look.faint, linewidth=0.8, zorder=1)
        data = axes.errorbar(
            x,
            y,
            xerr=[[max(0.0, x - low)], [max(0.0, high - x)]],
            fmt="o",
            markersize=9,
            capsize=4,
            color=look.colors[1],
            clip_on=False,
            zorder=5,
        )
        axes.set(
            xlim=(0, 1),
            xticks=(0, 0.5 * NEAR, NEAR, 0.5 * (1 + NEAR), 1),
            yscale="log",
            ylim=(1, _AXIS_LIMIT),
            yticks=(1, MUCH, 100, 1_000, _AXIS_LIMIT),  # the ends and the boundaries of the quadrants
            xlabel="far  ←  linear probe accuracy above chance  →  near",
            ylabel="samples per class",
        )
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(pad=9)  # the lowest numbers of both axes meet in the corner
        axes.set_title(plain(wrapped(title, 52)))
        figure.legend([data.lines[0]], ["your data, with its 95 % interval"], loc="outside lower right")
    return figure


def _height(samples_per_class: float) -> float:
    """Return the place of a number of samples per class on the axis, from 0 to 1."""
    return math.log(samples_per_class) / math.log(_AXIS_LIMIT)


def _heights(much: bool) -> tuple[float, float]:
    return (_height(MUCH), 1.0) if much else (0.0, _height(MUCH))
