"""A trial of the loss and the metrics before training."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn
from torchmetrics import classification as tm

from finetune import FineTuner
from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError, DataError
from finetune.training.metrics import build_metrics, try_metrics
from finetune.training.tasks import task_of_kind
from tests.training.metrics.test_meter import NAMES

LABELS = torch.tensor([1, 1])


def tried(metrics: Any, kind: str | None, outputs: Tensor, targets: Tensor) -> None:
    task = task_of_kind(None, kind or CLASSIFICATION)
    try_metrics(build_metrics(metrics, task, outputs.shape[1] if outputs.dim() > 1 else 1), task, outputs, targets)


@pytest.mark.parametrize(
    ("kind", "outputs", "targets"),
    [
        (CLASSIFICATION, torch.randn(2, 3), LABELS),
        (CLASSIFICATION, torch.randn(2, 3), LABELS[:, None]),
        (CLASSIFICATION, torch.randn(2, 3), torch.tensor([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0]])),
        (CLASSIFICATION, torch.randn(2, 3, 4, 4), torch.ones(2, 4, 4).long()),
        (CLASSIFICATION, torch.randn(2, 1000), LABELS),
        (BINARY, torch.randn(2, 1), LABELS.float()),
        (BINARY, torch.randn(2), LABELS),
        (BINARY, torch.randn(2, 1, 4, 4), torch.ones(2, 4, 4)),
        (MULTILABEL, torch.randn(2, 3), torch.ones(2, 3)),
        (REGRESSION, torch.randn(2, 1), torch.zeros(2)),
        (REGRESSION, torch.randn(2, 3), torch.zeros(2, 3)),
        (REGRESSION, torch.randn(2, 1, 4, 4), torch.zeros(2, 4, 4)),
    ],
)
def test_every_name_fits_its_task(kind: str, outputs: Tensor, targets: Tensor) -> None:
    tried([name for name in NAMES[kind] if name != "r2" or outputs.dim() < 3], kind, outputs, targets)


@pytest.mark.parametrize(
    "function",
    [
        lambda outputs, targets: sklearn_metrics.roc_auc_score(targets, outputs.softmax(1), multi_class="ovr"),
        lambda outputs, targets: sklearn_metrics.accuracy_score(targets, outputs.argmax(1)),
        lambda outputs, targets: sklearn_metrics.top_k_accuracy_score(targets, outputs, k=2, labels=[0, 1, 2]),
        lambda outputs, targets: sklearn_metrics.matthews_corrcoef(targets, outputs.argmax(1)),
        lambda outputs, targets: (outputs.argmax(1) == targets).float().mean(),
    ],
)
def test_a_function_that_needs_every_class_fits(function: Any) -> None:
    tried({"own": function}, CLASSIFICATION, torch.randn(2, 3), LABELS)


@pytest.mark.parametrize(
    ("metric", "outputs", "targets"),
    [
        (torchmetrics.AUROC(task="binary"), torch.randn(2, 2), LABELS),
        (tm.BinaryAccuracy(), torch.randn(2, 2), LABELS),
        (tm.MulticlassAccuracy(num_classes=5), torch.randn(2, 3), LABELS),
        (tm.MulticlassAccuracy(num_classes=3, average=None), torch.randn(2, 3), LABELS),
        (tm.MultilabelAccuracy(num_labels=3), torch.randn(2, 3), LABELS),
        (torchmetrics.MeanSquaredError(num_outputs=2), torch.randn(2, 3), LABELS),
        (lambda outputs, targets: outputs[:, 5].mean(), torch.randn(2, 3), LABELS),
        (lambda outputs: 1.0, torch.randn(2, 3), LABELS),
        (lambda outputs, targets: {"a": 1.0}, torch.randn(2, 3), LABELS),
        (lambda outputs, targets: sklearn_metrics.accuracy_score(targets, outputs), torch.randn(2, 3), LABELS),
    ],
)
def test_a_metric_that_does_not_fit_is_named(metric: Any, outputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(ArgumentError, match="metric 'own'"):
        tried({"fine": lambda outputs, targets: 0.0, "own": metric}, CLASSIFICATION, outputs, targets)


def test_a_trial_leaves_metrics_and_randomness_alone() -> None:
    own, state = tm.MulticlassAccuracy(num_classes=3), torch.get_rng_state()

    tried({"own": own, "noise": lambda outputs, targets: torch.rand(())}, CLASSIFICATION, torch.randn(2, 3), LABELS)

    assert not own.update_called
    torch.randn(2, 3)
    torch.set_rng_state(state)


@pytest.mark.parametrize(("outputs", "targets"), [(None, LABELS), (torch.randn(2, 3), None), ({"a": 1}, LABELS)])
def test_without_tensors_nothing_is_tried(outputs: Any, targets: Any) -> None:
    task = task_of_kind(None, CLASSIFICATION)

    try_metrics(build_metrics("accuracy", task, 3), task, outputs, targets)


X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
INDICES = torch.arange(12) % 3
ROWS = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)).softmax(1)


def tuner(loss: Any, *end: nn.Module) -> FineTuner:
    return FineTuner(nn.Sequential(nn.Linear(4, 3), *end), device="cpu", loss=loss)


@pytest.mark.parametrize("end", [(), (nn.Softmax(1),), (nn.ReLU(),), (nn.LogSigmoid(),)])
@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.KLDivLoss(), ROWS),
        (nn.KLDivLoss(reduction="batchmean"), ROWS),
        (F.kl_div, ROWS),
        (partial(F.kl_div, reduction="batchmean"), ROWS),
        (nn.NLLLoss(), INDICES),
        (F.nll_loss, INDICES),
    ],
)
def test_a_loss_of_log_probabilities_refuses_other_outputs(loss: Any, targets: Tensor, end: tuple[nn.Module]) -> None:
    for verb in (tuner(loss, *end).fit, tuner(loss, *end).evaluate):
        with pytest.raises(DataError, match="takes log-probabilities, whose exponentials sum to 1"):
            verb((X, targets))


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.KLDivLoss(log_target=True), ROWS),
        (partial(F.kl_div, log_target=True, reduction="batchmean"), ROWS),
        (nn.KLDivLoss(), ROWS.log()),
        (nn.KLDivLoss(), ROWS * 2),
        (nn.KLDivLoss(), ROWS - 0.5),
    ],
)
def test_a_divergence_refuses_targets_of_the_other_form(loss: Any, targets: Tensor) -> None:
    with pytest.raises(DataError, match=r"with log_target=(True|False) takes (log-)?probabilities as targets"):
        tuner(loss, nn.LogSoftmax(1)).fit((X, targets), progress=False)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.KLDivLoss(reduction="batchmean"), ROWS),
        (nn.KLDivLoss(reduction="batchmean"), F.one_hot(INDICES, 3).float()),
        (nn.KLDivLoss(reduction="batchmean", log_target=True), ROWS.log()),
        (partial(F.kl_div, reduction="batchmean"), ROWS),
        (nn.NLLLoss(), INDICES),
        (lambda outputs, targets: F.kl_div(outputs, targets, reduction="batchmean"), ROWS),
    ],
)
def test_log_probabilities_are_trained_on(loss: Any, targets: Tensor) -> None:
    own = tuner(loss, nn.LogSoftmax(1))
    history = own.fit((X, targets), epochs=20, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
