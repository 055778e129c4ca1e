"""Messages about metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune import FineTuner
from finetune.callbacks import EarlyStopping
from tests.messages.material import X, case, error, fit, tuner, y


@case("does not say whether a higher value is better. Pass mode=")
def metric_without_direction(tmp: Path) -> str:
    def own(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) == targets).float().mean())

    def stopped(**options: Any) -> FineTuner:
        return fit(tuner(metrics={"own": own}), val=(X, y), callbacks=[EarlyStopping("val_own", **options)])

    said = error(stopped)
    stopped(mode="max")
    stopped(mode="min")
    return said


@case("Two metrics would be called {}. Name them in a mapping")
def two_metrics_of_a_name(tmp: Path) -> str:
    from torchmetrics.classification import MulticlassAccuracy

    one, two = (MulticlassAccuracy(3, top_k=k) for k in (1, 2))
    said = error(lambda: fit(tuner(metrics=[one, two])))
    fit(tuner(metrics={"top1": one, "top2": two}))
    return said


@case("has no name. Name it in a mapping")
def nameless_metric(tmp: Path) -> str:
    metric = lambda outputs, targets: float(outputs.mean())  # noqa: E731
    said = error(lambda: fit(tuner(metrics=[metric])))
    fit(tuner(metrics={"own": metric}))
    return said


@case("Expected a metric, but got the class")
def metric_class(tmp: Path) -> str:
    from torchmetrics.classification import MulticlassAccuracy

    said = error(lambda: fit(tuner(metrics=[MulticlassAccuracy])))
    fit(tuner(metrics=[MulticlassAccuracy(3)]))
    return said


@case("The history cannot call a metric")
def reserved_name(tmp: Path) -> str:
    said = error(lambda: fit(tuner(metrics={"loss": "accuracy"})))
    fit(tuner(metrics={"own": "accuracy"}))
    return said


@case("Set how it averages, as in average='macro'")
def metric_of_several_numbers(tmp: Path) -> str:
    from torchmetrics.classification import MulticlassRecall

    said = error(lambda: fit(tuner(metrics=[MulticlassRecall(3, average="none")])))
    fit(tuner(metrics=[MulticlassRecall(3, average="macro")]))
    return said


@case("Pass a metric of this task, or remove it")
def metric_of_another_task(tmp: Path) -> str:
    from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix  # noqa: F401

    said = error(lambda: fit(tuner(metrics=[MulticlassAUROC(5)])))
    fit(tuner(metrics=[MulticlassAUROC(3)]))
    fit(tuner(metrics=[]))
    return said


@case("which is unknown for the head of this model. Pass a torchmetrics")
def metric_of_unknown_size(tmp: Path) -> str:
    from torchmetrics.classification import MulticlassF1Score

    class Own(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    class Bare(nn.Module):
        """A weight without a layer, whose number of outputs is known once it has run."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    def evaluated(metric: Any) -> dict[str, float]:
        return Own(Bare(), device="cpu", metrics=[metric]).evaluate((X, y))

    said = error(lambda: evaluated("f1"))
    assert "metrics=[MulticlassF1Score(num_classes=5)]" in said
    evaluated(MulticlassF1Score(num_classes=3))
    return said
