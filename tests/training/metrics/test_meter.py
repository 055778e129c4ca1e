"""Loss and metrics over the whole data set, for any batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import classification as tm
from torchmetrics import regression as tr

from finetune import FineTuner, StepOutput
from finetune.callbacks import EarlyStopping
from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError
from finetune.training.metrics import Meter, build_metrics
from finetune.training.tasks import Task, infer_task, task_of_kind

CPU = torch.device("cpu")
KINDS = (CLASSIFICATION, BINARY, MULTILABEL, REGRESSION)
NAMES = {
    CLASSIFICATION: ["accuracy", "f1", "precision", "recall", "auroc", "average_precision"],
    BINARY: ["accuracy", "f1", "precision", "recall", "auroc", "average_precision"],
    MULTILABEL: ["accuracy", "f1", "precision", "recall", "auroc", "average_precision"],
    REGRESSION: ["mae", "mse", "r2"],
}


def answers(kind: str, n: int = 40) -> tuple[Tensor, Tensor]:
    """Return outputs and targets of a kind of task, with some correlation."""
    generator = torch.Generator().manual_seed(3)
    if kind == CLASSIFICATION:
        targets = torch.arange(n) % 3
        return torch.randn(n, 3, generator=generator) + F.one_hot(targets, 3), targets
    if kind == MULTILABEL:
        targets = (torch.rand(n, 3, generator=generator) > 0.5).float()
        return torch.randn(n, 3, generator=generator) + targets, targets
    targets = (torch.arange(n) % 2).float() if kind == BINARY else torch.randn(n, generator=generator)
    return torch.randn(n, 1, generator=generator) + targets[:, None], targets


def by_scikit_learn(kind: str, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Compute the metrics over the whole data set with scikit-learn."""
    if kind == REGRESSION:
        values, y = outputs[:, 0].numpy(), targets.numpy()
        return {
            "mae": sklearn_metrics.mean_absolute_error(y, values),
            "mse": sklearn_metrics.mean_squared_error(y, values),
            "r2": sklearn_metrics.r2_score(y, values),
        }
    y = targets.numpy()
    if kind == CLASSIFICATION:
        scores, guesses, average = outputs.softmax(1).numpy(), outputs.argmax(1).numpy(), "macro"
        ranked = F.one_hot(targets, 3).numpy()
    else:
        scores, guesses = outputs.sigmoid().numpy(), (outputs > 0).numpy()
        scores, guesses = (scores[:, 0], guesses[:, 0]) if kind == BINARY else (scores, guesses)
        ranked, average = y, "binary" if kind == BINARY else "macro"
    over = None if kind == BINARY else "macro"
    return {
        "accuracy": float((guesses == y).mean()),
        "f1": sklearn_metrics.f1_score(y, guesses, average=average),
        "precision": sklearn_metrics.precision_score(y, guesses, average=average),
        "recall": sklearn_metrics.recall_score(y, guesses, average=average),
        "auroc": sklearn_metrics.roc_auc_score(ranked, scores, average=over),
        "average_precision": sklearn_metrics.average_precision_score(ranked, scores, average=over),
    }


def fed(meter: Meter, task: Task, outputs: Tensor, targets: Tensor, size: int) -> None:
    for some_outputs, some_targets in zip(outputs.split(size), targets.split(size), strict=True):
        step = StepOutput(task.loss(some_outputs, some_targets), some_outputs, some_targets)
        meter.update(step, len(some_outputs))


def metered(meter: Meter, task: Task, outputs: Tensor, targets: Tensor, size: int) -> dict[str, float]:
    fed(meter, task, outputs, targets, size)
    return meter.compute()


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(KINDS), size=st.integers(1, 45))
def test_trap_18_values_are_those_of_the_whole_set_for_any_batch_size(kind: str, size: int) -> None:
    outputs, targets = answers(kind)
    task = task_of_kind(None, kind)

    values = metered(Meter(build_metrics(NAMES[kind], task, outputs.shape[1]), task, CPU), task, outputs, targets, size)

    expected = {"loss": float(task.loss(outputs, targets)), **by_scikit_learn(kind, outputs, targets)}
    assert values == pytest.approx(expected, rel=1e-5)
    assert list(values) == ["loss", *NAMES[kind]]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 30))
def test_trap_18_evaluate_and_fit_count_each_sample_once(net, blobs, size: int) -> None:
    X, y = blobs(23)
    tuner = FineTuner(net(), device="cpu", metrics=["accuracy", "f1"])
    with torch.no_grad():
        outputs = net().eval()(X)
    guesses = outputs.argmax(1)
    expected = {
        "loss": float(F.cross_entropy(outputs, y)),
        "accuracy": float((guesses == y).float().mean()),
        "f1": sklearn_metrics.f1_score(y, guesses, average="macro"),
    }

    evaluated = tuner.evaluate((X, y), batch_size=size)
    history = tuner.fit((X, y), (X, y), lr=1e-30, batch_size=size)

    assert evaluated == pytest.approx(expected, rel=1e-5)
    assert history[0]["val_accuracy"] == pytest.approx(sum_of_rights(tuner, X, y), rel=1e-6)


def sum_of_rights(tuner: FineTuner, X: Tensor, y: Tensor) -> float:
    return float((tuner.predict(X).argmax(1) == y).float().mean())


@pytest.mark.parametrize("size", [1, 7, 40])
def test_torchmetrics_objects_keep_their_settings(size: int) -> None:
    outputs, targets = answers(CLASSIFICATION)
    task = task_of_kind(None, CLASSIFICATION)
    spec = {"top2": tm.MulticlassAccuracy(num_classes=3, top_k=2, average="micro"), "auroc": "auroc"}

    values = metered(Meter(build_metrics(spec, task, 3), task, CPU), task, outputs, targets, size)

    top2 = (outputs.topk(2).indices == targets[:, None]).any(1).float().mean()
    assert values["top2"] == pytest.approx(float(top2))
    assert list(values) == ["loss", "top2", "auroc"]


def test_binary_outputs_between_zero_and_one_are_logits() -> None:
    outputs, targets = torch.tensor([[0.1], [0.4], [0.2], [0.9]]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    task = task_of_kind(None, BINARY)

    values = metered(Meter(build_metrics(None, task, 1), task, CPU), task, outputs, targets, 2)

    assert values["accuracy"] == 0.75  # every logit is above 0, so all four are predicted as 1


def test_classification_outputs_between_zero_and_one_are_logits() -> None:
    task = task_of_kind(None, CLASSIFICATION)
    own = tm.MulticlassCalibrationError(num_classes=2, n_bins=1)
    outputs, targets = torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([0, 0])

    values = metered(Meter({"calibration": own}, task, CPU), task, outputs, targets, 1)

    assert values["calibration"] == pytest.approx(1 - float(outputs[0].softmax(0)[0]), abs=1e-6)


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
@pytest.mark.parametrize("size", [1, 9])
def test_regression_of_a_column_and_a_row(shape: tuple[int, ...], size: int) -> None:
    outputs, targets = answers(REGRESSION)
    task = task_of_kind(None, REGRESSION)

    values = metered(
        Meter(build_metrics(NAMES[REGRESSION], task, 1), task, CPU), task, outputs, targets.reshape(shape), size
    )

    assert values == pytest.approx({"loss": values["mse"], **by_scikit_learn(REGRESSION, outputs, targets)}, rel=1e-5)


def test_regression_of_several_values_is_averaged_over_them() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(30, 2, generator=generator) * torch.tensor([1.0, 100.0])
    outputs = targets + torch.randn(30, 2, generator=generator) * torch.tensor([1.0, 10.0])
    task = task_of_kind(None, REGRESSION)
    spec = {**{name: name for name in NAMES[REGRESSION]}, "cosine": tr.CosineSimilarity(reduction="mean")}

    values = metered(Meter(build_metrics(spec, task, 2), task, CPU), task, outputs, targets, 7)

    assert values["r2"] == pytest.approx(sklearn_metrics.r2_score(targets, outputs), rel=1e-5)
    assert values["mae"] == pytest.approx(float((outputs - targets).abs().mean()), rel=1e-5)
    assert values["cosine"] == pytest.approx(float(F.cosine_similarity(outputs, targets).mean()), rel=1e-5)


def test_probabilities_as_targets_count_by_their_likeliest_class(net, blobs) -> None:
    X, y = blobs()
    soft = F.one_hot(y, 3) * 0.8 + 0.2 / 3
    tuner = FineTuner(net(), device="cpu", loss="cross_entropy")

    values = tuner.evaluate((X, soft))

    hard = FineTuner(net(), device="cpu").evaluate((X, y))
    assert values["accuracy"] == hard["accuracy"]
    assert values["loss"] != hard["loss"]


@pytest.mark.parametrize(
    ("metric", "got"),
    [
        (tm.MulticlassAccuracy(num_classes=3, average=None), r"a tensor of shape \[3\]"),
        (tm.MulticlassROC(num_classes=3, thresholds=4), "a tuple"),
    ],
)
def test_a_metric_that_is_not_one_number_is_an_error(metric: torchmetrics.Metric, got: str) -> None:
    outputs, targets = answers(CLASSIFICATION)
    task = task_of_kind(None, CLASSIFICATION)

    with pytest.raises(ArgumentError, match=f"Expected the metric 'own' to return one number, but got {got}"):
        metered(Meter({"own": metric}, task, CPU), task, outputs, targets, 8)


# ---------------------------------------------------------------------- state


class Scores(torchmetrics.Metric):
    """Keep the mean of each batch in a list state; a second list state stays empty."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("means", [], dist_reduce_fx="cat")
        self.add_state("never", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.means.append(predictions.mean())

    def compute(self) -> Tensor:
        return torchmetrics.utilities.dim_zero_cat(self.means).sum()


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(KINDS), at=st.integers(0, 40))
def test_the_state_of_a_meter_round_trips_midway(kind: str, at: int) -> None:
    outputs, targets = answers(kind)
    task = task_of_kind(None, kind)
    made = build_metrics({**{name: name for name in NAMES[kind]}, "own": Scores()}, task, outputs.shape[1])
    whole, first, second = (Meter(made, task, CPU) for _ in range(3))
    expected = metered(whole, task, outputs, targets, 5)

    if at:
        fed(first, task, outputs[:at], targets[:at], 5)
    fed(second, task, outputs[:7], targets[:7], 5)  # overwritten by load_state_dict
    second.load_state_dict(first.state_dict())
    if at < len(outputs):
        fed(second, task, outputs[at:], targets[at:], 5)
    values = second.compute()

    if at % 5 == 0:
        assert values == expected
    else:
        assert {name: value for name, value in values.items() if name != "own"} == pytest.approx(
            {name: value for name, value in expected.items() if name != "own"}, rel=1e-5
        )
    assert second.samples == len(outputs)


def test_steps_that_return_only_a_loss_have_no_metrics() -> None:
    task = task_of_kind(None, CLASSIFICATION)
    meter, other = (Meter(build_metrics(["accuracy", "auroc"], task, 3), task, CPU) for _ in range(2))
    meter.update(StepOutput(torch.tensor(2.0)), 3)
    meter.update(StepOutput(torch.tensor(4.0)), 1)

    other.load_state_dict(meter.state_dict())

    assert meter.compute() == other.compute() == {"loss": 2.5}


def test_a_new_meter_is_at_zero() -> None:
    task = task_of_kind(None, REGRESSION)

    assert Meter(build_metrics(None, task, 1), task, CPU).compute() == {"loss": 0.0}


def test_losses_in_half_precision_are_summed_exactly() -> None:
    meter = Meter({}, Task(None, F.cross_entropy), CPU)

    for _ in range(1000):
        meter.update(StepOutput(torch.tensor(1.0, dtype=torch.bfloat16)), 37)

    assert meter.compute()["loss"] == 1.0


def test_the_metric_object_of_the_user_is_cloned(net, blobs) -> None:
    own = tm.MulticlassAUROC(num_classes=3)
    tuner = FineTuner(net(), device="cpu", metrics={"auroc": own})

    history = tuner.fit(blobs(), blobs(9, seed=1), epochs=2)

    assert not own.update_called
    assert history[-1]["val_auroc"] == pytest.approx(tuner.evaluate(blobs(9, seed=1))["auroc"])


@pytest.mark.parametrize(
    ("targets", "make"),
    [
        (lambda y: (y == 1).long(), lambda: nn.Linear(4, 1)),
        (lambda y: (y == 1).float()[:, None], lambda: nn.Linear(4, 1)),
        (lambda y: F.one_hot(y, 3), lambda: nn.Linear(4, 3)),
        (lambda y: y.float() * 1.5, lambda: nn.Linear(4, 1)),
        (lambda y: y[:, None], lambda: nn.Linear(4, 3)),
        (lambda y: y.int(), lambda: nn.Linear(4, 3)),
        (lambda y: y == 1, lambda: nn.Linear(4, 2)),
    ],
    ids=["binary", "binary column", "multi-label", "regression", "classes in a column", "int32", "bool"],
)
def test_each_task_end_to_end(blobs, targets: Callable[[Tensor], Tensor], make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    X, y = blobs(32)
    loader = DataLoader(TensorDataset(X, targets(y)), batch_size=7)
    tuner = FineTuner(make(), device="cpu")

    history = tuner.fit(loader, loader, epochs=12, lr=0.1)

    name = next(iter(tuner.evaluate(loader).keys() - {"loss"}))
    assert history[-1]["loss"] < history[0]["loss"]
    assert tuner.evaluate(loader) == pytest.approx({k: history[-1][f"val_{k}"] for k in ("loss", name)}, rel=1e-5)
    if name == "accuracy":
        assert history[-1]["val_accuracy"] > 0.6


# ---------------------------------------------------------------------- targets that the loss ignores


@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize("shape", [(40,), (40, 1), (4, 10), (2, 4, 5)])
def test_ignored_targets_count_in_neither_loss_nor_metrics(shape: tuple[int, ...], size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 3, shape, generator=generator)
    outputs = torch.randn(shape[0], 3, *(shape[1:] if shape[1:] != (1,) else ()), generator=generator)
    targets[torch.rand(shape, generator=generator) < 0.4] = 255
    task = infer_task(nn.CrossEntropyLoss(ignore_index=255), None, 3)

    values = metered(
        Meter(build_metrics(["accuracy", "f1"], task, 3), task, CPU), task, outputs, targets, min(size, shape[0])
    )

    kept = targets.flatten() != 255
    flat, labels = outputs.movedim(1, -1).reshape(-1, 3)[kept], targets.flatten()[kept]
    assert values["loss"] == pytest.approx(float(F.cross_entropy(flat, labels)), rel=1e-5)
    assert values["accuracy"] == pytest.approx(float((flat.argmax(1) == labels).float().mean()))
    assert values["f1"] == pytest.approx(sklearn_metrics.f1_score(labels, flat.argmax(1), average="macro"), rel=1e-5)


def test_masks_with_minus_100_are_left_out_by_default() -> None:
    masks = torch.randint(0, 3, (6, 4, 4))
    images = F.one_hot(masks, 3).movedim(-1, 1).float()
    masks[:, 0] = -100
    model = nn.Conv2d(3, 3, 1)
    nn.init.dirac_(model.weight)

    assert FineTuner(model, device="cpu", loss="cross_entropy").evaluate((images, masks))["accuracy"] == 1


@pytest.mark.parametrize("accumulation", [1, 2, 5])
def test_an_update_is_the_mean_over_the_targets_that_count(same, state_of, accumulation: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 4, 4, generator=generator)
    masks = torch.randint(0, 3, (5, 4, 4), generator=generator)
    masks[0], masks[1, 1:] = 255, 255  # no pixel, and few pixels

    def trained(batch_size: int, accumulation: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        tuner = FineTuner(
            nn.Conv2d(3, 3, 1), device="cpu", loss=nn.CrossEntropyLoss(ignore_index=255),
            gradient_accumulation_steps=accumulation, optimizer=torch.optim.SGD,
        )  # fmt: skip
        tuner.fit((images, masks), batch_size=batch_size, lr=0.1)
        return state_of(tuner.model)

    if accumulation == 5:
        whole, parts = trained(5, 1), trained(1, 5)
        assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)
    assert all(value.isfinite().all() for value in trained(1, accumulation).values())


# ---------------------------------------------------------------------- what a step returns


class Pairs(FineTuner):
    """A step whose labels are the first of two in the batch."""

    def training_step(self, batch: Any) -> StepOutput:
        inputs, pairs = batch
        labels = pairs[:, 0].long() if isinstance(pairs, Tensor) else pairs[0]
        logits = self.model(inputs)
        return StepOutput(F.cross_entropy(logits, labels), logits, labels)

    validation_step = training_step


@pytest.mark.parametrize("spec", [None, ["accuracy", "f1"], {"own": tm.MulticlassAccuracy(3, average="micro")}])
def test_what_a_step_returns_decides_the_metrics(net, blobs, spec: Any) -> None:
    X, y = blobs(30)
    items = DataLoader([(X[i], (int(y[i]), float(i))) for i in range(30)], batch_size=8)
    tuner = Pairs(net(), device="cpu", metrics=spec)
    name = "own" if spec and "own" in spec else "accuracy"

    history = tuner.fit(items, items, epochs=3, lr=1e-2, callbacks=[EarlyStopping(f"val_{name}", patience=9)])

    right = sum_of_rights(tuner, X, y)
    assert max(row[f"val_{name}"] for row in history) == pytest.approx(right)
    assert tuner.evaluate(items)[name] == pytest.approx(right)


def test_a_metric_that_does_not_fit_what_a_step_returns_is_an_error(net, blobs) -> None:
    X, y = blobs(30)
    items = DataLoader([(X[i], (int(y[i]), float(i))) for i in range(30)], batch_size=8)

    with pytest.raises(ArgumentError, match="no classification metric 'mae'"):
        Pairs(net(), device="cpu", metrics=["mae"]).fit(items)


# ---------------------------------------------------------------------- composed metrics


def test_the_state_of_a_composed_metric_round_trips() -> None:
    outputs, targets = answers(CLASSIFICATION)
    task = task_of_kind(None, CLASSIFICATION)
    made = build_metrics(
        {"percent": tm.MulticlassAccuracy(3, average="micro") * 100 - tm.MulticlassF1Score(3)}, task, 3
    )
    whole, first, second = (Meter(made, task, CPU) for _ in range(3))
    expected = metered(whole, task, outputs, targets, 5)

    fed(first, task, outputs[:20], targets[:20], 5)
    second.load_state_dict(first.state_dict())
    fed(second, task, outputs[20:], targets[20:], 5)

    assert second.compute() == expected
