"""The chart that posts on transfer learning draw, much or little data against near or far, with a data set on it.

Here it was measured: `python -m benchmarks.advice.fit` found the lines, and where a quadrant is better off with
something else than the rest, on half of the situations of `benchmarks.advice`, transfers of small convolutional
networks. Its table says how often that is right in the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.advice.evidence import Evidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR = 0.5  # accuracy of a linear probe above chance
MUCH = 8.0  # samples a class

_MOST_SHOWN = 10_000.0  # samples a class


@dataclass(frozen=True)
class Quadrant:
    """A part of the chart.

    Attributes:
        strategy: what is advised there.
        first_share: the first stage's rate there as a share of the head's; None for the default rates.
        gain: by how much it was more accurate than a linear probe, on average.
        right: how often it was within a point of the best strategy, with one case of each kind added, so that few
            cases are never certain.
    """

    much: bool
    near: bool
    strategy: str
    first_share: float | None
    gain: float
    right: float

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{'much' if self.much else 'little'} data, {'near' if self.near else 'far'}"

    def advises_as(self, other: Quadrant) -> bool:
        """Tell whether another advises the same."""
        return (self.strategy, self.first_share) == (other.strategy, other.first_share)


QUADRANTS = (
    Quadrant(much=False, near=False, strategy="lp_ft", first_share=0.1, gain=0.062, right=0.81),
    Quadrant(much=False, near=True, strategy="last_stage", first_share=None, gain=0.007, right=0.71),
    Quadrant(much=True, near=False, strategy="lp_ft", first_share=0.1, gain=0.170, right=0.98),
    Quadrant(much=True, near=True, strategy="lp_ft", first_share=None, gain=0.035, right=0.83),
)


def quadrant(samples_per_class: float, nearness: float) -> Quadrant:
    """Return the quadrant of a point on the chart."""
    place = (samples_per_class >= MUCH, nearness >= NEAR)
    return next(each for each in QUADRANTS if (each.much, each.near) == place)


def draw(evidence: Evidence, title: str) -> Figure:
    """Draw where the data set lies, with the spread of its probe over the folds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axvline(NEAR, color="grey", linewidth=1)
    axes.axhline(MUCH, color="grey", linewidth=1)
    for each in QUADRANTS:
        place = (1 + NEAR) / 2 if each.near else NEAR / 2, 0.9 if each.much else 0.05
        advised = each.strategy if each.first_share is None else f"{each.strategy}, larger rates"
        axes.text(*place, f"{each.name}\n{advised}", transform=axes.transAxes, ha="center", color="grey")
    point = min(max(evidence.nearness, 0.0), 1.0), min(max(evidence.samples_per_class, 1.0), _MOST_SHOWN)
    axes.errorbar(*point, xerr=evidence.spread, fmt="o", markersize=9, capsize=4, color="tab:red")
    axes.annotate("your data", point, (8, 8), textcoords="offset points", color="tab:red")
    axes.set(
        title=title,
        xlim=(0, 1),
        ylim=(1, _MOST_SHOWN),
        yscale="log",
        xlabel="far  -  accuracy of a linear probe above chance  -  near",
        ylabel="samples a class",
    )
    return figure
