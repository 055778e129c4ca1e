"""From what a user asks for to metrics by name, and which way each is better."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
import torchmetrics
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn
from torchmetrics import classification as tm

from finetune import FineTuner
from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError
from finetune.training.metrics import build_metrics, higher_is_better
from finetune.training.tasks import Task, task_of_kind
from tests.training.metrics.test_meter import KINDS, NAMES


def test_the_default_metrics_follow_the_task() -> None:
    assert {kind: list(build_metrics(None, task_of_kind(None, kind), 3)) for kind in KINDS} == {
        CLASSIFICATION: ["accuracy"],
        BINARY: ["accuracy"],
        MULTILABEL: ["accuracy"],
        REGRESSION: ["mae"],
    }
    assert build_metrics(None, Task(None, F.cross_entropy), None) == {}


def test_metrics_without_a_name_are_named_after_their_class() -> None:
    task = task_of_kind(None, CLASSIFICATION)

    assert list(build_metrics("f1", task, 3)) == ["f1"]
    assert list(build_metrics(tm.MulticlassAccuracy(num_classes=3), task, 3)) == ["multiclassaccuracy"]
    assert list(build_metrics(["f1", tm.MulticlassAUROC(num_classes=3)], task, 3)) == ["f1", "multiclassauroc"]


@pytest.mark.parametrize("spec", [["f1", "f1"], [tm.MulticlassAccuracy(3, top_k=k) for k in (1, 2)]])
def test_two_metrics_with_the_same_name_are_an_error(spec: Any) -> None:
    with pytest.raises(ArgumentError, match=r"Two metrics would be called .* Name them in a mapping"):
        build_metrics(spec, task_of_kind(None, CLASSIFICATION), 3)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("acuracy", CLASSIFICATION, "no classification metric 'acuracy'. Did you mean 'accuracy'"),
        ("mae", BINARY, "no binary metric 'mae'"),
        ("accuracy", REGRESSION, "no regression metric 'accuracy'.* Expected one of mae, mse, r2"),
        ("accuracy", None, r"no custom metric .accuracy.\. Expected a torchmetrics object"),
    ],
)
def test_a_metric_of_another_task_is_an_error(name: str, kind: str | None, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_metrics(name, Task(kind, F.cross_entropy), 3)


def test_without_the_number_of_outputs_a_name_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="needs the number of outputs"):
        build_metrics("f1", task_of_kind(None, CLASSIFICATION), None)


# ---------------------------------------------------------------------- functions


def share_right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def scikit_f1(outputs: Tensor, targets: Tensor) -> float:
    return sklearn_metrics.f1_score(targets, outputs.argmax(1), average="macro")


def scikit_auroc(outputs: Tensor, targets: Tensor) -> float:
    return sklearn_metrics.roc_auc_score(targets, outputs.softmax(1), multi_class="ovr")


@pytest.mark.parametrize("size", [1, 7, 30])
@pytest.mark.parametrize(
    ("spec", "name", "expected"),
    [
        (share_right, "share_right", share_right),
        ([scikit_f1], "scikit_f1", scikit_f1),
        ({"own": scikit_auroc}, "own", scikit_auroc),
        ({"own": partial(F.cross_entropy, label_smoothing=0.1)}, "own", partial(F.cross_entropy, label_smoothing=0.1)),
        (nn.CrossEntropyLoss(), "crossentropyloss", F.cross_entropy),
        (
            {"own": lambda outputs, targets: outputs.numpy().std()},
            "own",
            lambda outputs, targets: outputs.numpy().std(),
        ),
        ({"own": lambda o, t: np.array(0.5)}, "own", lambda o, t: 0.5),
    ],
)
def test_a_function_gets_all_outputs_and_targets_of_a_pass(
    net, blobs, spec: Any, name: str, expected: Any, size: int
) -> None:
    X, y = blobs(30)
    tuner = FineTuner(net(), device="cpu", metrics=spec)

    values = tuner.evaluate((X, y), batch_size=size)

    assert values[name] == pytest.approx(float(expected(tuner.predict(X), y)), rel=1e-5)
    assert (
        tuner.fit((X, y), (X, y), batch_size=size)[-1][f"val_{name}"] == tuner.evaluate((X, y), batch_size=size)[name]
    )


def test_a_collection_is_taken_apart(net, blobs) -> None:
    metrics = torchmetrics.MetricCollection({"top1": tm.MulticlassAccuracy(3), "f1": tm.MulticlassF1Score(3)})

    assert list(FineTuner(net(), device="cpu", metrics=metrics).evaluate(blobs())) == ["loss", "f1", "top1"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([lambda outputs, targets: 0.0], r"has no name\. Name it in a mapping"),
        (tm.MulticlassAccuracy, r"Pass MulticlassAccuracy\(\.\.\.\), an instance"),
        ({"loss": share_right}, "cannot call a metric 'loss'"),
        ({"lr": "accuracy"}, "cannot call a metric 'lr'"),
        ({"val_top1": "accuracy"}, "cannot call a metric 'val_top1'"),
        ({1: "accuracy"}, "cannot call a metric 1"),
        ({"own": 3}, "no classification metric 3"),
        ({"own": ["accuracy"]}, "no classification metric"),
    ],
)
def test_what_is_no_metric_is_an_error_before_training(net, blobs, watch, spec: Any, message: str) -> None:
    seen = watch()

    with pytest.raises(ArgumentError, match=message):
        FineTuner(net(), device="cpu", metrics=spec).fit(blobs(), callbacks=[seen])

    assert "on_step_end" not in seen.hooks


# ---------------------------------------------------------------------- direction


def without_direction(outputs: Tensor, targets: Tensor) -> float:
    return 0.5


def with_direction(outputs: Tensor, targets: Tensor) -> float:
    return 0.5


with_direction.higher_is_better = True  # type: ignore[attr-defined]


def test_names_know_which_way_is_better() -> None:
    found = {
        **build_metrics(NAMES[CLASSIFICATION], task_of_kind(None, CLASSIFICATION), 3),
        **build_metrics(NAMES[REGRESSION], task_of_kind(None, REGRESSION), 1),
        **build_metrics(with_direction, task_of_kind(None, CLASSIFICATION), 3),
    }

    better_high = {name for name in [*found, "loss"] if higher_is_better(name, found)}
    assert better_high == {*NAMES[CLASSIFICATION], "r2", "with_direction"}
    assert {name for name in [*found, "loss"] if higher_is_better(f"val_{name}", found)} == better_high


@pytest.mark.parametrize(
    "metric",
    [
        tm.MulticlassStatScores(num_classes=3),
        tm.MulticlassAccuracy(num_classes=3) * 100,
        tm.MulticlassAccuracy(num_classes=3) + tm.MulticlassF1Score(num_classes=3),
        1 - tm.MulticlassAccuracy(num_classes=3),
        tm.MulticlassConfusionMatrix(num_classes=3),
        torchmetrics.MeanMetric(),
        without_direction,
    ],
    ids=["stat scores", "times 100", "sum", "one minus", "confusion", "mean", "function"],
)
@pytest.mark.parametrize("name", ["own", "val_own"])
def test_a_metric_without_a_direction_needs_one(metric: Any, name: str) -> None:
    metrics = build_metrics({"own": metric}, task_of_kind(None, CLASSIFICATION), 3)

    with pytest.raises(ArgumentError, match=rf"'{name}' does not say .* Pass mode='max' if it is, or mode='min'"):
        higher_is_better(name, metrics)
    assert higher_is_better(name, metrics, "max")
    assert not higher_is_better(name, metrics, "min")


def test_a_mode_decides_over_the_metric_and_must_be_one() -> None:
    metrics = build_metrics("accuracy", task_of_kind(None, CLASSIFICATION), 3)

    assert not higher_is_better("accuracy", metrics, "min")
    with pytest.raises(ArgumentError, match="Expected mode to be 'max', 'min' or None, but got 'highest'"):
        higher_is_better("accuracy", metrics, "highest")


def _collection(**options: Any) -> torchmetrics.MetricCollection:
    return torchmetrics.MetricCollection({"acc": tm.MulticlassAccuracy(3), "f1": tm.MulticlassF1Score(3)}, **options)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (_collection(), ["acc", "f1"]),
        ([_collection()], ["acc", "f1"]),
        (["accuracy", _collection(prefix="own_")], ["accuracy", "own_acc", "own_f1"]),
        ({"all": _collection()}, ["all_acc", "all_f1"]),
        ({"all": _collection(), "mcc": "recall"}, ["all_acc", "all_f1", "mcc"]),
    ],
)
def test_collections_among_metrics_are_flattened(spec: Any, names: list[str]) -> None:
    assert list(build_metrics(spec, task_of_kind(None, CLASSIFICATION), 3)) == names


def test_a_collection_repeats_no_name() -> None:
    with pytest.raises(ArgumentError, match="Two metrics would be called 'f1'"):
        build_metrics(["f1", _collection()], task_of_kind(None, CLASSIFICATION), 3)


@pytest.mark.parametrize("spec", [[["accuracy", "f1"]], {"both": ["accuracy", "f1"]}, {"both": {"a": "f1"}}])
def test_other_nested_metrics_are_an_error(spec: Any) -> None:
    with pytest.raises(ArgumentError, match=r"There is no .*metric"):
        build_metrics(spec, task_of_kind(None, CLASSIFICATION), 3)
