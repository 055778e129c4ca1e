"""From measurements to advice: where a data set lies, which strategy suits it, at which rates, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.advice.chart import Quadrant, draw, quadrant
from finetune.advice.evidence import Evidence
from finetune.training.optim.rates import Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Advice:
    """What to do with a data set, and why; printed, it says all of it.

    Attributes:
        strategy: for `fit(strategy=...)`.
        lr: for `fit(lr=...)`; None for the defaults.
        quadrant: where the data lies on the chart, as `"little data, near"`.
        confidence: how often, from 0 to 1, such advice was within a point of the best strategy where that was tried.
        reasons: three sentences.
        evidence: the measurements.
    """

    strategy: str
    lr: Rate | None
    quadrant: str
    confidence: float
    reasons: tuple[str, str, str]
    evidence: Evidence

    def __str__(self) -> str:
        rate = "" if self.lr is None else f", lr={self.lr!r}"
        return "\n".join([
            f"fit(strategy={self.strategy!r}{rate}), sure to {self.confidence:.0%}: {self.quadrant}",
            *self.reasons,
            *_numbers(self.evidence),
        ])  # fmt: skip

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the chart of much or little data, near or far, with this data set on it.

        Args:
            path: where to write the picture as well; the format follows the suffix.

        Returns:
            The matplotlib figure.
        """
        figure = draw(self.evidence, f"{self.strategy}, sure to {self.confidence:.0%}")
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def judge(evidence: Evidence, head_rate: float) -> Advice:
    """Return the advice that follows from measurements: that of the quadrant in which the data lies.

    Args:
        head_rate: the learning rate that the head has by default, which advised rates begin from.
    """
    found = quadrant(evidence.samples_per_class, evidence.nearness)
    # Where the probe's spread reaches over the line, the other side may be as true.
    sides = {quadrant(evidence.samples_per_class, evidence.nearness + part * evidence.spread) for part in (-1, 0, 1)}
    agreed = sum(side.advises_as(found) for side in sides) / len(sides)
    confidence = found.right * agreed
    reasons = _reasons(evidence, found, confidence)
    return Advice(found.strategy, _rates(found, head_rate), found.name, confidence, reasons, evidence)


def _rates(found: Quadrant, head_rate: float) -> tuple[float, float] | None:
    """Return the rates of the first stage and of the head, of two digits, as no measurement is finer."""
    if found.first_share is None:
        return None
    first, last = (float(f"{rate:.2g}") for rate in (found.first_share * head_rate, head_rate))
    return first, last


def _reasons(evidence: Evidence, found: Quadrant, confidence: float) -> tuple[str, str, str]:
    amount = f"{evidence.samples_per_class:.0f} samples a class are {'much' if found.much else 'little'} data"
    right = f"{evidence.probe:.0%} ± {evidence.spread:.0%}"
    known = "near to what the model knows" if found.near else "far from what the model knows"
    place = (
        f"{amount}, and a linear probe on the frozen features is right for {right} of the "
        f"samples that it has not seen, so that they are {known}."
    )
    if found.strategy == "linear_probe":
        why = "Where that was so before, training more than the head did not make it more accurate."
    else:
        rates = "" if found.first_share is None else " at rates that are larger below the head than by default"
        why = (
            f"Where that was so before, {found.strategy}{rates} was {100 * found.gain:.0f} points more accurate than "
            f"training the head alone."
        )
    doubt = "" if confidence == found.right else ", less where, as here, the probe's spread reaches to other advice"
    sure = f"It was within a point of the best strategy in {found.right:.0%} of the cases tried{doubt}."
    return place, why, sure


def _numbers(evidence: Evidence) -> list[str]:
    """Return a line for each measurement, with what it can tell and what it cannot."""
    sizes = evidence.class_sizes
    classes = f"{len(sizes)} classes of {min(sizes)} to {max(sizes)}, imbalance {evidence.imbalance:.1f}"
    curve = ", ".join(f"{accuracy:.3f} from {count}" for count, accuracy in evidence.curve)
    rows = [
        ("samples", f"{evidence.samples or evidence.measured:,}", f"{evidence.measured:,} looked at: {classes}"),
        ("linear probe", f"{evidence.probe:.3f}", f"± {evidence.spread:.3f} over folds: what a new head on frozen "
         f"features gives; not what fine-tuning adds"),
        ("from fewer", "", f"{curve} samples: what more data may add to the probe; not to fine-tuning"),
        ("of all stages", f"{evidence.probe_of_stages:.3f}", "a probe of the features of all stages: above the linear "
         "probe, earlier stages know what the last has lost"),
        ("neighbours", f"{evidence.knn:.3f}", "accuracy of the 5 nearest: as the probe, without a linear map; low in "
         "many dimensions"),
        ("H-score", f"{evidence.h_score:.3f}", "from 0 to 1, variance between classes: compares models on this data; "
         "not data sets"),
        ("LogME", f"{evidence.log_me:.3f}", "evidence of a linear model: compares models on this data; has no scale"),
    ]  # fmt: skip
    if evidence.probe_on_validation is not None:
        rows.insert(2, ("on validation", f"{evidence.probe_on_validation:.3f}", "the same probe there: much below it, "
                        "these data differ"))  # fmt: skip
    return [f"  {name:<14}{value:>7}  {note}" for name, value, note in rows]
