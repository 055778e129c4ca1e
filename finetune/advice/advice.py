"""`Advice`: the strategy and learning rates that the measurements recommend, with confidence and reasons."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.advice.chart import NEAR, Quadrant, draw, quadrant
from finetune.advice.evidence import Evidence
from finetune.display import html
from finetune.training.optim.rates import Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 79  # columns of the printed text


@dataclass(frozen=True, repr=False)
class Advice:
    """A recommended strategy with its reasons. `print` shows the full report.

    Attributes:
        strategy: Strategy for `fit(strategy=...)`.
        lr: Learning rates for `fit(lr=...)`, or None for the defaults.
        quadrant: Location of the data on the chart, such as `"fewer than 8 samples per class, near"`.
        confidence: Fraction of comparable benchmarks, from 0 to 1, in which this advice came within a point of the
            best strategy, lower if the measurements do not tell the quadrant. 0 if nothing was pretrained.
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

    def __repr__(self) -> str:
        return f"Advice(strategy={self.strategy!r}, lr={self.lr!r}, confidence={self.confidence:.2f})"

    def __str__(self) -> str:
        rows = [f"  {name:<14} {value:>7}  {note}" for name, value, note in _table(self.evidence)]
        return "\n".join([*self._headline(), "", *(textwrap.fill(each, _WIDTH) for each in self.reasons), "", *rows])

    def _repr_html_(self) -> str:
        table = html.table(["measurement", "value", "meaning"], _table(self.evidence), text=3)
        return html.paragraph(*self._headline()) + html.paragraph(*self.reasons) + table

    def _headline(self) -> tuple[str, str]:
        rates = "" if self.lr is None else f", lr={self.lr!r}"
        sure = f"Confidence {100 * self.confidence:.0f} %: " if self.confidence else ""
        return f"Recommended: fit(strategy={self.strategy!r}{rates})", f"{sure}{self.quadrant}"

    def plot(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot the data on the chart of data size and distance from the pretraining domain.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Example:
            >>> from finetune import FineTuner
            >>> figure = FineTuner("resnet18").advise("dogs/train").plot("chart.png")
        """
        sure = f"confidence {100 * self.confidence:.0f} %" if self.confidence else self.quadrant
        return draw(self.evidence, f"{self.strategy} ({sure})", self.quadrant, path, theme)


def judge(evidence: Evidence, head_rate: float, *, untrained: bool = False) -> Advice:
    """Return the advice for the quadrant of the measurements.

    Args:
        head_rate: Default learning rate of the head, from which recommended rates are derived.
        untrained: Whether the weights are random, so that there is nothing to keep.
    """
    if untrained:
        return Advice("full_finetune", None, "nothing was pretrained", 0.0, _reasons_if_untrained(evidence), evidence)
    found = quadrant(evidence.samples_per_class, evidence.nearness)
    # Within the spread of the probe, the data may also lie in a neighboring quadrant.
    plausible = {quadrant(evidence.samples_per_class, evidence.nearness + k * evidence.spread) for k in (-1, 0, 1)}
    agreement = sum(each.advises_as(found) for each in plausible) / len(plausible)
    confidence = found.right * agreement
    others = {each.name: each for each in plausible if not each.advises_as(found)}
    reasons = _reasons(evidence, found, confidence, sorted(others))
    return Advice(found.strategy, _rates(found, head_rate), found.name, confidence, reasons, evidence)


def _rates(found: Quadrant, head_rate: float) -> tuple[float, float] | None:
    """Return the learning rates of the first stage and the head to two digits, or None for the defaults."""
    if found.first_share is None:
        return None
    first, last = (float(f"{rate:.2g}") for rate in (found.first_share * head_rate, head_rate))
    return first, last


def _reasons(evidence: Evidence, found: Quadrant, confidence: float, others: Sequence[str]) -> tuple[str, str, str]:
    location = (
        f"The data has {evidence.samples_per_class:.0f} samples per class, and {_probe(evidence)}, "
        f"{100 * evidence.nearness:.0f} % of the way from chance to perfect ({100 * NEAR:.0f} % or more count as near "
        f"the pretraining domain)."
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
    doubt = (
        f"; as the probe varies, the data may also count as {' or '.join(others)}, with another recommendation, which "
        f"lowers the confidence to {100 * confidence:.0f} %"
    )
    hits = f"It came within one point of the best strategy in {100 * found.right:.0f} % of these benchmarks"
    return location, gain, f"{hits}{doubt if others else ''}."


def _reasons_if_untrained(evidence: Evidence) -> tuple[str, str, str]:
    return (
        f"The weights are random: nothing was pretrained, so there are no features to keep, and {_probe(evidence)}.",
        "The benchmarks behind this advice start from pretrained models and say nothing about this one.",
        "To start from a pretrained model, leave out weights=None, or pass the file of its weights.",
    )


def _probe(evidence: Evidence) -> str:
    low, high = evidence.interval
    return (
        f"a linear probe on frozen features is {100 * evidence.probe:.0f} % accurate (95 % interval "
        f"{100 * low:.0f} % to {100 * high:.0f} %)"
    )


def _table(evidence: Evidence) -> list[tuple[str, str, str]]:
    """Return the name of each measurement, its value, and the conclusions that it allows."""
    low, high = evidence.interval
    sizes = evidence.class_sizes
    size = str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    classes = f"{len(sizes)} classes of {size}, imbalance {evidence.imbalance:.1f}"
    curve = ", ".join(f"{accuracy:.3f} from {count}" for count, accuracy in evidence.curve)
    rows = [
        ("samples", f"{evidence.samples or evidence.measured:,}", f"{evidence.measured:,} measured: {classes}"),
        ("linear probe", f"{evidence.probe:.3f}", f"{low:.3f} to {high:.3f} (95 %): a new head on frozen features"),
        ("learning curve", "", f"{curve} samples"),
        ("all stages", f"{evidence.probe_of_stages:.3f}", "probe of all stages; if higher, earlier stages help"),
        ("neighbors", f"{evidence.knn:.3f}", "accuracy of the 5 nearest neighbors"),
        ("H-score", f"{evidence.h_score:.3f}", "0 to 1; compares models, not datasets"),
        ("LogME", f"{evidence.log_me:.3f}", "log evidence; compares models, not datasets"),
    ]
    if evidence.probe_on_validation is not None:
        on_validation = f"{evidence.probe_on_validation:.3f}"
        rows.insert(2, ("on validation", on_validation, "same probe; if far lower, the datasets differ"))
    return rows
