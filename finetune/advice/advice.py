"""`Advice`: the strategy and learning rates that the measurements recommend, with confidence and reasons."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.advice.chart import MUCH, NEAR, Quadrant, draw, quadrant
from finetune.advice.evidence import Evidence
from finetune.naming.paths import local_path
from finetune.training.optim.rates import Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 79  # columns of the printed text


@dataclass(frozen=True)
class Advice:
    """A recommended strategy with its reasons. `str()` returns the full report.

    Attributes:
        strategy: Strategy for `fit(strategy=...)`.
        lr: Learning rates for `fit(lr=...)`, or None for the defaults.
        quadrant: Location of the data on the chart, such as `"little data, near"`.
        confidence: Fraction of comparable benchmarks, from 0 to 1, in which this advice came within a point of the
            best strategy.
        reasons: Three sentences.
        evidence: The measurements.

    Example:
        >>> from finetune import FineTuner
        >>> tuner = FineTuner("resnet18")
        >>> advice = tuner.advise("dogs/train", "dogs/val")
        >>> print(advice)
        Recommended: fit(strategy=...
        >>> history = tuner.replace_head(3).fit("dogs/train", strategy=advice.strategy, lr=advice.lr)
    """

    strategy: str
    lr: Rate | None
    quadrant: str
    confidence: float
    reasons: tuple[str, str, str]
    evidence: Evidence

    def __str__(self) -> str:
        rates = "" if self.lr is None else f", lr={self.lr!r}"
        location = quadrant(self.evidence.samples_per_class, self.evidence.nearness).description
        return "\n".join([
            f"Recommended: fit(strategy={self.strategy!r}{rates})",
            f"Confidence {100 * self.confidence:.0f} %: {location}",
            "",
            *(textwrap.fill(reason, _WIDTH) for reason in self.reasons),
            "",
            *_table(self.evidence),
        ])  # fmt: skip

    def plot(self, path: str | Path | None = None) -> Figure:
        """Plot the data on the chart of data size and distance from the pretraining domain.

        Args:
            path: Path to also save the figure to; the suffix sets the format.

        Returns:
            The matplotlib figure.

        Example:
            >>> from finetune import FineTuner
            >>> figure = FineTuner("resnet18").advise("dogs/train").plot("chart.png")
        """
        figure = draw(self.evidence, f"{self.strategy} (confidence {100 * self.confidence:.0f} %)")
        if path is not None:
            figure.savefig(local_path(path), dpi=120)
        return figure


def judge(evidence: Evidence, head_rate: float) -> Advice:
    """Return the advice for the quadrant of the measurements.

    Args:
        head_rate: Default learning rate of the head, from which recommended rates are derived.
    """
    found = quadrant(evidence.samples_per_class, evidence.nearness)
    # Within the spread of the probe, the data may also lie in a neighboring quadrant.
    plausible = {quadrant(evidence.samples_per_class, evidence.nearness + k * evidence.spread) for k in (-1, 0, 1)}
    agreement = sum(each.advises_as(found) for each in plausible) / len(plausible)
    confidence = found.right * agreement
    reasons = _reasons(evidence, found, confidence)
    return Advice(found.strategy, _rates(found, head_rate), found.name, confidence, reasons, evidence)


def _rates(found: Quadrant, head_rate: float) -> tuple[float, float] | None:
    """Return the learning rates of the first stage and the head to two digits, or None for the defaults."""
    if found.first_share is None:
        return None
    first, last = (float(f"{rate:.2g}") for rate in (found.first_share * head_rate, head_rate))
    return first, last


def _reasons(evidence: Evidence, found: Quadrant, confidence: float) -> tuple[str, str, str]:
    location = (
        f"The data has {evidence.samples_per_class:.0f} samples per class ({MUCH:.0f} or more count as much), and a "
        f"linear probe on frozen features is {100 * evidence.probe:.0f} % ± {100 * evidence.spread:.0f} % accurate, "
        f"{100 * evidence.nearness:.0f} % of the way from chance to perfect ({100 * NEAR:.0f} % or more count as near)."
    )
    if found.strategy == "linear_probe":
        gain = "In benchmarks of this quadrant, training more than the head did not improve the accuracy."
    else:
        rates = "" if found.first_share is None else " with larger learning rates below the head"
        points = round(100 * found.gain)
        gain = (
            f"In benchmarks of this quadrant, {found.strategy}{rates} was {points} point{'s' * (points != 1)} more "
            f"accurate than a linear probe."
        )
    doubt = "" if confidence == found.right else ", but here the spread of the probe reaches a different recommendation"
    hits = f"It came within one point of the best strategy in {100 * found.right:.0f} % of these benchmarks{doubt}."
    return location, gain, hits


def _table(evidence: Evidence) -> list[str]:
    """Return a line per measurement, with the conclusions that it allows."""
    sizes = evidence.class_sizes
    size = str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    classes = f"{len(sizes)} classes of {size}, imbalance {evidence.imbalance:.1f}"
    curve = ", ".join(f"{accuracy:.3f} from {count}" for count, accuracy in evidence.curve)
    rows = [
        ("samples", f"{evidence.samples or evidence.measured:,}", f"{evidence.measured:,} measured: {classes}"),
        ("linear probe", f"{evidence.probe:.3f}", f"± {evidence.spread:.3f} over folds: a new head on frozen features"),
        ("learning curve", "", f"{curve} samples"),
        ("all stages", f"{evidence.probe_of_stages:.3f}", "probe of all stages; if higher, earlier stages help"),
        ("neighbors", f"{evidence.knn:.3f}", "accuracy of the 5 nearest neighbors"),
        ("H-score", f"{evidence.h_score:.3f}", "0 to 1; compares models, not datasets"),
        ("LogME", f"{evidence.log_me:.3f}", "log evidence; compares models, not datasets"),
    ]
    if evidence.probe_on_validation is not None:
        on_validation = f"{evidence.probe_on_validation:.3f}"
        rows.insert(2, ("on validation", on_validation, "same probe; if far lower, the datasets differ"))
    return [f"  {name:<14} {value:>7}  {note}" for name, value, note in rows]
