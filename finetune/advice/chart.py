"""`Quadrant`: the chart of data size and distance from the pretraining domain, with a strategy per quadrant.

Its boundaries and strategies were fitted by `python -m benchmarks.advice.fit` on half of the transfers of
`benchmarks.advice`, between small convolutional networks. The benchmark's table reports the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.advice.evidence import Evidence
from finetune.display.figures import new_figure

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


def draw(evidence: Evidence, title: str) -> Figure:
    """Draw the chart with the data as a point, and the interval of its probe as an error bar."""
    figure = new_figure(6, 4.5)
    axes = figure.subplots()
    axes.axvline(NEAR, color="gray", linewidth=1)
    axes.axhline(MUCH, color="gray", linewidth=1)
    for each in QUADRANTS:
        place = (1 + NEAR) / 2 if each.near else NEAR / 2, 0.84 if each.much else 0.05
        advised = each.strategy if each.first_share is None else f"{each.strategy}, larger rates"
        axes.text(
            *place,
            "\n".join((*each.name.rsplit(", ", 1), advised)),
            transform=axes.transAxes,
            ha="center",
            color="gray",
        )
    point = min(max(evidence.nearness, 0.0), 1.0), min(max(evidence.samples_per_class, 1.0), _AXIS_LIMIT)
    low, high = (evidence.above_chance(end) for end in evidence.interval)
    xerr = [[max(0.0, point[0] - max(low, 0.0))], [max(0.0, high - point[0])]]
    axes.errorbar(
        *point,
        xerr=xerr,
        fmt="o",
        markersize=9,
        capsize=4,
        color="tab:red",
    )
    axes.annotate("your data", point, (8, 8), textcoords="offset points", color="tab:red")
    axes.set(
        title=title,
        xlim=(0, 1),
        ylim=(1, _AXIS_LIMIT),
        yscale="log",
        xlabel="far  ←  linear probe accuracy above chance  →  near",
        ylabel="samples per class",
    )
    return figure
