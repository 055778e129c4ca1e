"""Metrics by name."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from sklearn import metrics as sklearn_metrics
from torch import Tensor
from torchmetrics import classification as tm

from finetune import FineTuner
from finetune.callbacks import EarlyStopping
from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError
from finetune.training.metrics import METRICS, Meter, NamedMetric, StepOutput, build_metrics
from finetune.training.metrics.named import bounds, rises
from finetune.training.tasks import task_of_kind

MACRO = ["f1", "precision", "recall", "auroc", "average_precision"]


def test_a_new_metric_is_one_entry(net, blobs, monkeypatch) -> None:
    def build(kind: str, num_outputs: int | None) -> torchmetrics.Metric:
        return tm.MulticlassMatthewsCorrCoef(num_outputs)

    monkeypatch.setitem(METRICS, "mcc", NamedMetric(build, kinds={CLASSIFICATION}))
    X, y = blobs(9, seed=1)
    tuner = FineTuner(net(), device="cpu", metrics=["accuracy", "mcc"])

    history = tuner.fit(blobs(), (X, y), epochs=6, lr=0.02, callbacks=[EarlyStopping("val_mcc")])

    best = max(row["val_mcc"] for row in history)
    assert sklearn_metrics.matthews_corrcoef(y, tuner.predict(X).argmax(1)) == pytest.approx(best)
    with pytest.raises(ArgumentError, match=r"no classification metric 'mc'\. Did you mean 'mcc'"):
        build_metrics("mc", task_of_kind(None, CLASSIFICATION), 3)
    with pytest.raises(ArgumentError, match="no regression metric 'mcc'"):
        build_metrics("mcc", task_of_kind(None, REGRESSION), 1)


# ---------------------------------------------------------------------- classes that the data lacks


def values(kind: str, names: list[str], outputs: Tensor, targets: Tensor, size: int = 4) -> dict[str, float]:
    task = task_of_kind(None, kind)
    meter = Meter(build_metrics(names, task, outputs.shape[1]), task, torch.device("cpu"), warn=lambda message: None)
    for some, given in zip(outputs.split(size), targets.split(size), strict=True):
        meter.update(StepOutput(torch.tensor(0.0), some, given), len(some))
    return {name: value for name, value in meter.compute().items() if name != "loss"}


def perfect(kind: str, targets: Tensor, classes: int) -> Tensor:
    right = F.one_hot(targets, classes) if kind == CLASSIFICATION else targets
    return (right.float() - 0.5) * 20


@pytest.mark.parametrize("name", ["accuracy", *MACRO])
@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_perfect_model_is_perfect_without_a_class(name: str, missing: int) -> None:
    labels = torch.tensor([c for c in (0, 1, 2, 3) if c != missing] * 4)
    rows = F.one_hot(labels, 4)

    assert values(CLASSIFICATION, [name], perfect(CLASSIFICATION, labels, 4), labels)[name] == pytest.approx(1)
    assert values(MULTILABEL, [name], perfect(MULTILABEL, rows, 4), rows)[name] == pytest.approx(1)


@pytest.mark.parametrize("name", ["recall", "auroc", "average_precision"])
def test_the_mean_is_over_the_classes_in_the_data(name: str) -> None:
    targets = torch.arange(40) % 3
    outputs = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) + F.one_hot(targets, 5)
    scores, present = outputs.softmax(1), range(3)
    by_class = {
        "recall": lambda c: ((scores.argmax(1) == c) & (targets == c)).sum() / (targets == c).sum(),
        "auroc": lambda c: sklearn_metrics.roc_auc_score(targets == c, scores[:, c]),
        "average_precision": lambda c: sklearn_metrics.average_precision_score(targets == c, scores[:, c]),
    }[name]

    found = values(CLASSIFICATION, [name], outputs, targets)[name]

    assert found == pytest.approx(sum(float(by_class(c)) for c in present) / 3, rel=1e-5)


@pytest.mark.parametrize("name", ["f1", "precision"])
def test_a_class_that_is_predicted_but_absent_counts_as_zero(name: str) -> None:
    outputs = perfect(CLASSIFICATION, torch.tensor([0, 0, 1, 1, 2]), 4)
    targets = torch.tensor([0, 0, 1, 1, 1])
    score = {"f1": sklearn_metrics.f1_score, "precision": sklearn_metrics.precision_score}[name]

    expected = score(targets, outputs.argmax(1), average="macro", zero_division=0)
    assert values(CLASSIFICATION, [name], outputs, targets)[name] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "targets", "undefined"),
    [
        (CLASSIFICATION, torch.ones(6).long(), {"auroc"}),
        (BINARY, torch.zeros(6).long(), {*MACRO}),
        (BINARY, torch.ones(6).long(), {"auroc"}),
        (MULTILABEL, torch.zeros(6, 3).long(), {*MACRO}),
        (MULTILABEL, torch.ones(6, 3).long(), {"auroc"}),
    ],
    ids=["one class", "only negatives", "only positives", "no label", "every label"],
)
def test_what_is_undefined_is_nan_and_no_score(kind: str, targets: Tensor, undefined: set[str]) -> None:
    outputs = perfect(kind, targets[:, None] if kind == BINARY else targets, 3)

    found = values(kind, MACRO, outputs, targets)

    assert {name for name, value in found.items() if math.isnan(value)} == undefined
    assert all(value == pytest.approx(1) for name, value in found.items() if name not in undefined)


def test_r2_of_one_sample_is_undefined(net, blobs, caplog) -> None:
    tuner = FineTuner(net(outputs=1), device="cpu", metrics=["r2", "mae"])
    X, _ = blobs()

    row = tuner.fit((X, X[:, :1]), (X[:1], X[:1, :1]), epochs=2)[-1]

    assert math.isnan(row["val_r2"])
    assert not math.isnan(row["val_mae"])
    assert caplog.text.count("The metric 'r2' is NaN") == 1


def test_early_stopping_does_not_follow_an_undefined_metric(net, blobs) -> None:
    X, y = blobs()
    tuner = FineTuner(net(), device="cpu", metrics=["auroc"])

    tuner.fit((X, y), (X[y == 1], y[y == 1]), epochs=9, callbacks=[EarlyStopping("val_auroc", patience=2)])

    assert len(tuner.history) == 2


def test_a_metric_over_all_samples_needs_no_classes() -> None:
    assert values(CLASSIFICATION, ["accuracy"], torch.eye(3), torch.ones(3).long())["accuracy"] == pytest.approx(1 / 3)
    assert set(values(REGRESSION, ["mae", "mse"], torch.ones(1, 1), torch.ones(1))) == {"mae", "mse"}


def test_the_name_of_a_metric_says_its_range_and_its_better_direction(monkeypatch) -> None:
    monkeypatch.setitem(METRICS, "mcc", NamedMetric(lambda _, n: tm.MulticlassMatthewsCorrCoef(n), {CLASSIFICATION}))
    infinity = math.inf
    known = {
        **dict.fromkeys(("accuracy", "auroc", *MACRO), (True, (0.0, 1.0))),
        **dict.fromkeys(("loss", "mae", "mse"), (False, (0.0, infinity))),
        "r2": (True, (-infinity, 1.0)),
        "mcc": (True, (-infinity, infinity)),
        "own": (None, (-infinity, infinity)),
    }
    assert {name: (rises(name), bounds(name)) for name in (*METRICS, "loss", "own")} == known


@pytest.mark.parametrize(("name", "form"), [("f1", "F1Score"), ("precision", "Precision"), ("recall", "Recall")])
def test_hits_per_class_are_those_of_torchmetrics_without_a_table_of_all_pairs(name: str, form: str):
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.rand(60, 5, generator=generator), torch.randint(5, (60,), generator=generator)
    expected = getattr(tm, f"Multiclass{form}")(5, average="macro")
    for number in (5, 200_000):  # whose pairs would take 300 GB
        metric = METRICS[name].build(CLASSIFICATION, number)
        for part in (slice(0, 7), slice(7, 60)):
            metric.update(F.pad(scores[part], (0, number - 5)), targets[part])
        assert metric.compute().item() == pytest.approx(expected(scores, targets).item(), abs=1e-6)
