"""The sections on the answers of a model: classes, confusions, probabilities and values."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.interpret.interpretation import Interpretation
from finetune.interpret.page import KINDS, confidence, samples, weakest_classes
from finetune.interpret.rows import Rows, cell_of
from finetune.report.blocks import Block, Note, Section, Table
from finetune.report.images import plot

_WEAKEST = 10
_PAIRS = 20


def headline(found: Interpretation) -> dict[str, str]:
    """Return the most important values by name."""
    if found.task == REGRESSION:
        return {"mean absolute error": cell_of(found.mae), "RMSE": cell_of(found.rmse), "R²": cell_of(found.r2)}
    values = {"accuracy" if found.task != MULTILABEL else "accuracy per label": percent(found.accuracy)}
    if found.task == CLASSIFICATION and len(found.labels) > 5:
        values["top-5 accuracy"] = percent(found.top5)
    return values | {"calibration error": cell_of(found.calibration_error)}


def lead(found: Interpretation) -> list[str]:
    """Return sentences on the task, the most frequent mistake, and the probabilities."""
    nouns = {CLASSIFICATION: "classes", MULTILABEL: "labels", REGRESSION: "outputs"}
    noun = nouns.get(found.task)
    of = f" with {len(found.labels):,} {noun}" if noun and len(found.labels) > 1 else ""
    said = [f"{KINDS[found.task].capitalize()}{of}, on {samples(len(found))}."]
    if found.task == REGRESSION:
        return said
    if found.task != MULTILABEL:
        said.append(_most_confused(found))
    return [*said, f"{_surety(found).capitalize()}."]


def answer_sections(found: Interpretation) -> Iterator[Section]:
    """Yield the sections that suit the task."""
    if found.task == REGRESSION:
        yield Section("values", "Values", [_residuals(found), Table.of("Errors of each output", found.per_output)])
        return
    if found.task != MULTILABEL:
        yield Section("confusion", "Confusion", list(_confusion(found)))
    yield Section("classes", "Labels" if found.task == MULTILABEL else "Classes", list(_classes(found)))
    yield Section("probabilities", "Probabilities", list(_probabilities(found)))


def percent(share: float) -> str:
    """Return a share in percent.

    Example:
        >>> percent(0.8756)
        '87.6 %'
    """
    return "-" if isnan(share) else f"{100 * share:.1f} %"


def _confusion(found: Interpretation) -> Iterator[Block]:
    pairs = found.most_confused(_PAIRS)
    right, total = int(found.confusion.diagonal().sum()), int(found.confusion.sum())
    yield plot(
        found.plot_confusion,
        f"Confusion matrix of {len(found.labels):,} classes. {right:,} of {samples(total)} are on the diagonal. "
        f"{_most_confused(found)}",
        "Each row shows the samples of a true class, by the class that the model answers.",
    )
    yield Table.of("Most confused classes", pairs) if pairs else Note(_most_confused(found))


def _most_confused(found: Interpretation) -> str:
    for pair in found.most_confused(1):
        return f"Most often, {pair.true} is taken for {pair.predicted}: {pair.count:,} time{'s' * (pair.count != 1)}."
    return "No class is taken for another."


def _classes(found: Interpretation) -> Iterator[Block]:
    noun = "labels" if found.task == MULTILABEL else "classes"
    present = [row for row in found.per_class if row.support]
    if len(present) < len(found.labels):
        yield Note(f"{len(found.labels) - len(present):,} of {len(found.labels):,} {noun} have no samples here.")
    if len(present) > _WEAKEST:
        yield Table.of(f"The {_WEAKEST} weakest {noun}", weakest_classes(found, _WEAKEST))
    yield Table.of(f"All {noun}", found.per_class)


def _probabilities(found: Interpretation) -> Iterator[Block]:
    name = confidence(found)
    yield plot(
        found.plot_reliability,
        f"Accuracy by confidence, beside the diagonal of calibrated probabilities. The calibration error is "
        f"{cell_of(found.calibration_error)}: {_surety(found)}.",
        f"Accuracy equals the confidence of calibrated probabilities, on the diagonal. Confidence is the {name}.",
    )
    filled = Rows(row for row in found.reliability() if row.count)
    yield Table.of("Accuracy by confidence", filled, folded=True)
    groups = {group: sum(counts) for group, counts in found.score_histogram().counts.items()}
    counted = " and ".join(f"{group} ({count:,})" for group, count in groups.items())
    yield plot(
        found.plot_scores,
        f"Histograms of the {name}: {counted}.",
        "Groups far apart are told apart well. Each histogram has a scale of its own.",
    )
    if found.task in (BINARY, MULTILABEL) or len(found.labels) == 2:
        yield from _curves(found)


def _surety(found: Interpretation) -> str:
    bins = [row for row in found.reliability() if row.count]
    gap = sum(row.count * (row.confidence - row.accuracy) for row in bins) / sum(row.count for row in bins)
    if abs(gap) < 0.005:
        return "on average, probabilities are neither too high nor too low"
    return f"on average, probabilities are too {'high' if gap > 0 else 'low'} by {abs(gap):.2f}"


def _curves(found: Interpretation) -> Iterator[Block]:
    """Yield the ROC and precision-recall curves, with their areas."""
    roc, areas = found.roc_curves, found.precision_recall_curves
    if all(isnan(curve.area) for curve in roc):
        yield Note("There are no ROC curves, as all or no samples have each label.")
        return
    rows = [
        [curve.label, cell_of(curve.area), cell_of(other.area), str(curve.positives)]
        for curve, other in zip(roc, areas, strict=True)
    ]
    defined = sorted((curve for curve in roc if not isnan(curve.area)), key=lambda curve: curve.area)
    weakest = f"The area under the ROC curve of {defined[0].label} is {cell_of(defined[0].area)}"
    yield plot(
        found.plot_curves,
        f"ROC curves and precision-recall curves. {weakest}{', the smallest' if len(defined) > 1 else ''}.",
        "Left: true positive rate by false positive rate. Right: precision by recall. Each point is a threshold.",
    )
    if len(rows) > 1:
        yield Table("Areas under the curves", ["label", "ROC", "average precision", "positives"], rows, folded=True)


def _residuals(found: Interpretation) -> Block:
    measured = [f"{row.output}: mae {cell_of(row.mae)}, R² {cell_of(row.r2)}" for row in found.per_output[:6]]
    return plot(
        found.plot_residuals,
        f"Predicted by true values, and the distribution of the residuals. {'; '.join(measured)}.",
        "Left: each point is a sample, and right answers are on the line. Right: residuals.",
    )
