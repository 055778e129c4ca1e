"""Measures of predictions beside their targets, by torchmetrics. Where one is undefined, it is NaN and never 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL
from finetune.interpret.judged import Judged
from finetune.interpret.rows import (
    ClassScores,
    ConfusedPair,
    Histogram,
    OutputErrors,
    PrecisionRecallCurve,
    ReliabilityBin,
    RocCurve,
    Rows,
)

BINS = 15

_BELOW_ONE = math.nextafter(1.0, 0.0)


# ---------------------------------------------------------------------- classes


def confusion_matrix(judged: Judged) -> Tensor:
    """Return the number of samples, int64 [C, C], by true class (rows) and answer (columns)."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    count = len(judged.labels)
    found: Tensor = multiclass_confusion_matrix(judged.answers, judged.targets, max(2, count), validate_args=False)
    return found[:count, :count].long()


def confused_pairs(confusion: Tensor, labels: tuple[str, ...], n: int) -> Rows[ConfusedPair]:
    """Return the `n` pairs of classes that are confused most often, the most frequent first."""
    support = confusion.sum(1, keepdim=True)
    wrong = confusion.clone().fill_diagonal_(0)
    shares = wrong / support.clamp_min(1)
    pairs = wrong.nonzero().tolist()
    pairs.sort(key=lambda pair: (-int(wrong[tuple(pair)]), -float(shares[tuple(pair)])))
    return Rows(
        ConfusedPair(labels[true], labels[answer], int(wrong[true, answer]), float(shares[true, answer]))
        for true, answer in pairs[:n]
    )


def class_scores(judged: Judged) -> Rows[ClassScores]:
    """Return precision, recall, F1 and support of each class or label."""
    from torchmetrics.functional import classification

    labels, count = judged.labels, len(judged.labels)
    form = "multilabel" if judged.kind == MULTILABEL else "multiclass"
    columns = []
    for measure in ("precision", "recall", "f1_score"):
        function = getattr(classification, f"{form}_{measure}")
        columns.append(
            function(
                judged.answers, judged.targets, count, average="none", validate_args=False, zero_division=math.nan
            ).tolist()
        )
    support = judged.targets.sum(0) if judged.kind == MULTILABEL else judged.targets.bincount(minlength=count)
    return Rows(ClassScores(*row) for row in zip(labels, *columns, support.tolist(), strict=True))


def top_accuracy(judged: Judged, k: int) -> float:
    """Return the fraction of samples whose true class is among the `k` likeliest. 1 if there are no more classes."""
    if k >= len(judged.labels):
        return 1.0
    return float((judged.ranks < k).double().mean())


def accuracy(judged: Judged) -> float:
    """Return the fraction of right answers, or of right labels for a multi-label task."""
    return float((judged.answers == judged.targets).double().mean())


# ---------------------------------------------------------------------- probabilities


def reliability(judged: Judged, bins: int) -> Rows[ReliabilityBin]:
    """Return confidence and accuracy by confidence, in bins of equal width."""
    confidences, right = _confidences(judged)
    edges = _edges(bins)
    places = torch.bucketize(confidences, edges, right=True) - 1
    counts = places.bincount(minlength=bins)
    sums = [places.bincount(weights, minlength=bins) for weights in (confidences, right.double())]
    means = [(total / counts).tolist() for total in sums]  # 0 / 0 is NaN
    limits = edges.tolist()
    return Rows(ReliabilityBin(*row) for row in zip(limits[:-1], limits[1:], *means, counts.tolist(), strict=True))


def calibration_error(judged: Judged) -> float:
    """Return the expected calibration error (arXiv 1706.04599) over `BINS` bins.

    torchmetrics sums in float32, gives certainty a bin of its own, and has no table of the bins. This is the mean gap
    of the table.
    """
    bins = [row for row in reliability(judged, BINS) if row.count]
    return sum(row.count * abs(row.confidence - row.accuracy) for row in bins) / sum(row.count for row in bins)


def score_histogram(judged: Judged, bins: int) -> Histogram:
    """Return the distribution of the scores, of right and wrong answers, or of samples with and without a label."""
    confidences, right = _confidences(judged)
    if judged.kind == CLASSIFICATION:
        groups = {"right": right, "wrong": ~right}
    elif judged.kind == BINARY:
        groups = {judged.labels[0]: ~right, judged.labels[1]: right}
    else:
        groups = {"without the label": ~right, "with the label": right}
    edges = _edges(bins)
    places = torch.bucketize(confidences, edges, right=True) - 1
    counts = {name: tuple(places[group].bincount(minlength=bins).tolist()) for name, group in groups.items()}
    return Histogram(tuple(edges.tolist()), counts)


def roc_curves(judged: Judged) -> Rows[RocCurve]:
    """Return the receiver operating characteristic of each label, of two classes that of the second.

    torchmetrics has no way to leave out the thresholds between the corners of a curve, which take gigabytes for a
    thousand classes.
    """
    rows, nothing = [], torch.empty(0, dtype=torch.float64)
    for label, points in judged.operating_points.items():
        positives = int(points.right[-1])
        if positives in (0, len(judged)):
            rows.append(RocCurve(label, nothing, nothing, nothing, math.nan, positives))
            continue
        false, true = (_after(0, counts / counts[-1]) for counts in (points.wrong, points.right))
        area = float(torch.trapezoid(true, false))
        rows.append(RocCurve(label, false, true, _after(1, points.thresholds), area, positives))
    return Rows(rows)


def precision_recall_curves(judged: Judged) -> Rows[PrecisionRecallCurve]:
    """Return precision and recall by threshold of each label, of two classes those of the second."""
    rows, nothing = [], torch.empty(0, dtype=torch.float64)
    for label, points in judged.operating_points.items():
        positives = int(points.right[-1])
        if not positives:
            rows.append(PrecisionRecallCurve(label, nothing, nothing, nothing, math.nan, 0))
            continue
        precision, recall = points.right / (points.right + points.wrong), points.right / positives
        area = float((precision * recall.diff(prepend=recall.new_zeros(1))).sum())
        precision, recall = _after(1, precision).flip(0), _after(0, recall).flip(0)
        rows.append(PrecisionRecallCurve(label, precision, recall, points.thresholds.flip(0), area, positives))
    return Rows(rows)


def _after(first: float, values: Tensor) -> Tensor:
    return torch.cat([values.new_tensor([first]), values])


def _confidences(judged: Judged) -> tuple[Tensor, Tensor]:
    """Return confidences float64 and whether they are right, bool: of each answer, or of each label of a sample."""
    if judged.kind == CLASSIFICATION:
        confidences, right = judged.scores.amax(1), judged.right
    elif judged.kind == BINARY:
        confidences, right = judged.scores[:, 1], judged.targets.bool()
    else:
        confidences, right = judged.scores.flatten(), judged.targets.flatten().bool()
    # A bin holds its lower edge and not its upper one. Certainty belongs to the last bin, not to one of its own.
    return confidences.double().clamp_max(_BELOW_ONE), right


def _edges(bins: int) -> Tensor:
    return torch.linspace(0, 1, bins + 1, dtype=torch.float64)


# ---------------------------------------------------------------------- values


def output_errors(judged: Judged) -> Rows[OutputErrors]:
    """Return the errors of each output of a regression."""
    from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error

    values, targets = judged.scores.double(), judged.targets.double()
    count = len(judged.labels)
    mae = mean_absolute_error(values, targets, num_outputs=count).reshape(-1)
    rmse = mean_squared_error(values, targets, squared=False, num_outputs=count).reshape(-1)
    r2 = [_r2(values[:, place], targets[:, place]) for place in range(count)]
    return Rows(OutputErrors(*row) for row in zip(judged.labels, mae.tolist(), rmse.tolist(), r2, strict=True))


def _r2(values: Tensor, targets: Tensor) -> float:
    from torchmetrics.functional.regression import r2_score

    scale = (targets - targets.mean()).square().mean().sqrt()
    if len(targets) < 2 or bool((targets == targets[0]).all()) or not scale > 0:
        return math.nan
    # It depends on no unit. That of torchmetrics is 0 where the targets vary by less than 0.01 in sum.
    return float(r2_score((values - targets.mean()) / scale, (targets - targets.mean()) / scale))
