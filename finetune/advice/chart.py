"""The chart that posts on transfer learning draw, much or little data against near or far, with a data set on it.

Where the lines are was measured (`python -m benchmarks.advice`): near is where a linear probe on the frozen features is
right often, much where more samples add little to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.advice.evidence import Evidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR = 0.7  # accuracy of a linear probe above chance
MUCH = 30.0  # samples a class

_MOST_SHOWN = 10_000.0  # samples a class


def is_near(evidence: Evidence) -> bool:
    """Tell whether the features tell the classes apart as they are."""
    return evidence.nearness >= NEAR


def is_much(evidence: Evidence) -> bool:
    """Tell whether there are many samples of each class."""
    return evidence.samples_per_class >= MUCH


def quadrant(*, much: bool, near: bool) -> str:
    """Return what a quadrant is called."""
    return f"{'much' if much else 'little'} data, {'near' if near else 'far'}"


def draw(evidence: Evidence, title: str) -> Figure:
    """Draw where the data set lies, with the spread of its probe over the folds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axvline(NEAR, color="grey", linewidth=1)
    axes.axhline(MUCH, color="grey", linewidth=1)
    for much, near in ((False, False), (False, True), (True, False), (True, True)):
        place = (1 + NEAR) / 2 if near else NEAR / 2, 0.93 if much else 0.07
        axes.text(*place, quadrant(much=much, near=near), transform=axes.transAxes, ha="center", color="grey")
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
