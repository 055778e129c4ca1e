"""Every number equals that of scikit-learn, or of a few lines of NumPy where it has none."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from finetune.interpret.calibration import Calibration
from tests.helpers.answers import interpreted, random_answers

SEEDS = st.integers(0, 2**31 - 1)
SAMPLES = st.integers(1, 60)
CLASSES = st.integers(2, 9)
KINDS = ("classification", "binary", "multilabel")


def close(found: object, expected: object) -> bool:
    return bool(np.allclose(np.asarray(found, float), np.asarray(expected, float), atol=1e-6, equal_nan=True))


@given(SEEDS, SAMPLES, CLASSES)
def test_the_confusion_matrix(seed: int, samples: int, classes: int) -> None:
    found = random_answers("classification", samples, classes, seed)
    outputs, targets = found.predictions.outputs, found.predictions.targets
    expected = metrics.confusion_matrix(targets, outputs.argmax(1), labels=range(classes))
    assert found.confusion.dtype == torch.int64
    assert found.confusion.tolist() == expected.tolist()


@given(SEEDS, SAMPLES, CLASSES)
def test_the_scores_of_classes_of_which_some_are_absent(seed: int, samples: int, classes: int) -> None:
    found = random_answers("classification", samples, classes, seed)
    outputs, targets = found.predictions.outputs, found.predictions.targets
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = metrics.precision_recall_fscore_support(
            targets, outputs.argmax(1), labels=range(classes), zero_division=np.nan
        )
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert close([getattr(row, name) for row in found.per_class], values), name


@given(SEEDS, SAMPLES, CLASSES, st.lists(st.floats(0.05, 0.95), min_size=9, max_size=9))
def test_the_scores_of_labels_at_their_thresholds(
    seed: int, samples: int, labels: int, thresholds: list[float]
) -> None:
    calibration = Calibration(2.0, tuple(thresholds[:labels]))
    found = random_answers("multilabel", samples, labels, seed, calibration)
    above = (found.predictions.outputs / 2).sigmoid().numpy() >= np.array(thresholds[:labels])
    targets = found.predictions.targets
    assert targets is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = metrics.precision_recall_fscore_support(targets, above, average=None, zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert close([getattr(row, name) for row in found.per_class], values), name
    assert close(found.accuracy, (above == targets.bool().numpy()).mean())


@given(SEEDS, SAMPLES, st.integers(2, 12))
def test_top_1_and_top_5(seed: int, samples: int, classes: int) -> None:
    found = random_answers("classification", samples, classes, seed)
    outputs, targets = found.predictions.outputs.numpy(), found.predictions.targets
    assert targets is not None
    likeliest = (-outputs).argsort(1)
    for k, value in ((1, found.top1), (5, found.top5)):
        assert close(value, (likeliest[:, :k] == targets.numpy()[:, None]).any(1).mean())
        if classes > max(k, 2):
            assert close(value, metrics.top_k_accuracy_score(targets, outputs, k=k, labels=range(classes)))


@given(SEEDS, SAMPLES, st.integers(6, 12), st.sampled_from([1.0, 40.0, 300.0]), st.booleans())
def test_top_5_of_equal_scores_and_of_probabilities_close_to_0(
    seed: int, samples: int, classes: int, scale: float, whole: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = scale * torch.randn(samples, classes, generator=generator)
    outputs = (outputs / scale).round() * scale if whole else outputs
    targets = torch.randint(classes, (samples,), generator=generator)
    found = interpreted("classification", outputs, targets)
    likeliest = (-outputs.numpy()).argsort(1, kind="stable")  # the first of equal ones first, as in argmax
    assert close(found.top1, (likeliest[:, 0] == targets.numpy()).mean())
    assert close(found.top5, (likeliest[:, :5] == targets.numpy()[:, None]).any(1).mean())


@given(SEEDS, st.integers(2, 60), st.integers(2, 6), st.sampled_from(KINDS))
def test_the_curves_and_their_areas(seed: int, samples: int, count: int, kind: str) -> None:
    found = random_answers(kind, samples, 1 if kind == "binary" else count, seed)
    outputs, targets = found.predictions.outputs, found.predictions.targets
    assert targets is not None
    scores, present = outputs.sigmoid(), targets.bool()
    if kind == "classification":
        scores, present = outputs.softmax(1), torch.nn.functional.one_hot(targets, count).bool()
        if count == 2:
            scores, present = scores[:, 1:], present[:, 1:]
    rows = zip(found.roc_curves, found.precision_recall_curves, scores.T, present.T, strict=True)
    for roc, precision_recall, column, positive in rows:
        assert roc.positives == precision_recall.positives == int(positive.sum())
        if positive.all() or not positive.any():
            assert math.isnan(roc.area)
            assert len(roc.true_positive_rate) == 0
        else:
            assert close(roc.area, metrics.roc_auc_score(positive, column))
            assert close(metrics.auc(roc.false_positive_rate, roc.true_positive_rate), roc.area)
            every = np.stack(metrics.roc_curve(positive, column, drop_intermediate=False)[:2], 1)
            ours = np.stack([roc.false_positive_rate, roc.true_positive_rate], 1)
            assert all(np.isclose(every, point).all(1).any() for point in ours)
        if positive.any():
            assert close(precision_recall.area, metrics.average_precision_score(positive, column))
            *expected, _ = metrics.precision_recall_curve(positive, column, drop_intermediate=True)
            assert close(sorted(set(expected[1].round(9))), sorted(set(precision_recall.recall.numpy().round(9))))
            assert close(expected[0].max(), precision_recall.precision.max())
        else:
            assert math.isnan(precision_recall.area)
            assert len(precision_recall.recall) == 0


def calibration_error(confidences: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Return the expected calibration error, bin by bin."""
    total = 0.0
    for place in range(bins):
        low, high = place / bins, (place + 1) / bins
        inside = (confidences >= low) & ((confidences < high) | (place == bins - 1))
        if inside.any():
            total += inside.mean() * abs(confidences[inside].mean() - right[inside].mean())
    return total


@given(SEEDS, SAMPLES, CLASSES, st.sampled_from(KINDS), st.sampled_from([1.0, 0.01, 3.0]))
def test_the_calibration_error_and_its_bins(seed: int, samples: int, count: int, kind: str, temperature: float) -> None:
    found = random_answers(kind, samples, 1 if kind == "binary" else count, seed, Calibration(temperature))
    outputs, targets = found.predictions.outputs / temperature, found.predictions.targets
    assert targets is not None
    if kind == "classification":
        confidences, right = outputs.softmax(1).amax(1), outputs.argmax(1) == targets
    else:
        confidences, right = outputs.sigmoid().flatten(), targets.flatten()
    expected = calibration_error(confidences.double().numpy(), right.double().numpy(), 15)
    assert close(found.calibration_error, expected)
    for bins in (1, 15, 4):
        rows = found.reliability(bins)
        assert (len(rows), sum(row.count for row in rows)) == (bins, len(confidences))
        gaps = [row.count * abs(row.confidence - row.accuracy) for row in rows if row.count]
        assert all(math.isnan(row.accuracy) and math.isnan(row.confidence) for row in rows if not row.count)
        assert all(row.low - 1e-6 <= row.confidence <= row.high + 1e-6 for row in rows if row.count)
        expected = calibration_error(confidences.double().numpy(), right.double().numpy(), bins)
        assert close(sum(gaps) / len(confidences), expected)


def test_certain_answers_are_in_the_last_bin() -> None:
    outputs, targets = torch.tensor([[200.0, 0.0], [200.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1, 0])
    found = interpreted("classification", outputs, targets)
    assert [row.count for row in found.reliability(10)] == [0] * 9 + [3]
    assert [counts[-1] for counts in found.score_histogram(10).counts.values()] == [2, 1]
    assert found.calibration_error == pytest.approx((2 + 0.9526) / 3 - 2 / 3, abs=1e-4)


@given(SEEDS, SAMPLES, CLASSES, st.sampled_from(KINDS))
def test_the_calibration_error_is_that_of_torchmetrics(seed: int, samples: int, count: int, kind: str) -> None:
    found = random_answers(kind, samples, 1 if kind == "binary" else count, seed)
    scores, targets = found.predictions.probabilities, found.predictions.targets
    assert targets is not None
    if kind == "classification":
        expected = multiclass_calibration_error(scores, targets, count)
    else:
        expected = binary_calibration_error(scores.flatten(), targets.flatten().long())
    assert found.calibration_error == pytest.approx(float(expected), abs=1e-5)


@given(SEEDS, SAMPLES, st.integers(1, 4), st.sampled_from(KINDS))
def test_the_histogram_counts_every_score_once(seed: int, samples: int, count: int, kind: str) -> None:
    found = random_answers(kind, samples, 1 if kind == "binary" else count + 1, seed)
    histogram = found.score_histogram(7)
    confidences = found.predictions.probabilities
    confidences = confidences.amax(1) if kind == "classification" else confidences.flatten()
    expected, edges = np.histogram(confidences.double().numpy(), 7, (0, 1))
    assert close(histogram.edges, edges)
    assert np.sum(list(histogram.counts.values()), axis=0).tolist() == expected.tolist()


@given(SEEDS, st.integers(2, 60), st.integers(1, 4), st.sampled_from([1e-4, 1.0, 1e4]))
def test_the_errors_of_a_regression(seed: int, samples: int, outputs: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(samples, outputs, generator=generator) * scale
    values = targets + torch.randn(samples, outputs, generator=generator) * scale
    found = interpreted("regression", values, targets, loss="mse")
    values, targets = values.double(), targets.double()
    assert close(found.mae / scale, metrics.mean_absolute_error(targets, values) / scale)
    assert close(found.rmse / scale, metrics.root_mean_squared_error(targets, values) / scale)
    expected = metrics.r2_score(targets, values, multioutput="raw_values")
    assert np.allclose([row.r2 for row in found.per_output], expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found.residuals.double(), targets - values, atol=1e-5 * scale)


def test_r2_is_undefined_without_variance() -> None:
    found = interpreted("regression", torch.randn(5, 2), torch.tensor([[1.0, 2.0]] * 4 + [[1.0, 3.0]]), loss="mse")
    assert [math.isnan(row.r2) for row in found.per_output] == [True, False]
    assert math.isnan(found.r2)
    assert math.isnan(interpreted("regression", torch.ones(1, 1), torch.ones(1), loss="mse").r2)


@given(SEEDS, SAMPLES, CLASSES, st.integers(1, 90))
def test_the_most_confused_pairs(seed: int, samples: int, classes: int, n: int) -> None:
    found = random_answers("classification", samples, classes, seed)
    rows, matrix = found.most_confused(n), found.confusion
    wrong = matrix.clone().fill_diagonal_(0)
    assert len(rows) == min(n, int((wrong > 0).sum()))
    assert [row.count for row in rows] == sorted(wrong[wrong > 0].tolist(), reverse=True)[:n]
    for row in rows:
        true, predicted = int(row.true), int(row.predicted)
        assert true != predicted
        assert row.count == int(matrix[true, predicted])
        assert row.share == pytest.approx(row.count / int(matrix[true].sum()))


def test_the_curves_of_many_classes_have_few_points() -> None:
    found = random_answers("classification", 2000, 200, 0)
    points = sum(len(curve.thresholds) for curve in found.roc_curves)
    assert points < 3 * 2000  # of 400,000 scores
    assert sum(len(curve.thresholds) for curve in found.precision_recall_curves) < points
