"""Loss and metrics over a whole pass, exact for any batch size.

Losses are summed with their number of samples; metrics are torchmetrics', whose states accumulate
over batches, so that an F1 is that of the data set and no mean of batch values. Everything stays on
the device until it is read once at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from finetune.errors import ArgumentError, nearest
from finetune.training.tasks import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION, Task, class_indices

if TYPE_CHECKING:
    import torchmetrics

MetricSpec: TypeAlias = "str | torchmetrics.Metric"
Metrics: TypeAlias = "Mapping[str, MetricSpec] | Sequence[MetricSpec] | MetricSpec | None"

_DEFAULT: dict[str | None, tuple[str, ...]] = {
    CLASSIFICATION: ("accuracy",),
    BINARY: ("accuracy",),
    MULTILABEL: ("accuracy",),
    REGRESSION: ("mae",),
    None: (),
}
_PREFIX: dict[str | None, str] = {CLASSIFICATION: "Multiclass", BINARY: "Binary", MULTILABEL: "Multilabel"}
_BY_CLASSES = {
    "accuracy": "Accuracy",
    "f1": "F1Score",
    "precision": "Precision",
    "recall": "Recall",
    "auroc": "AUROC",
    "average_precision": "AveragePrecision",
}
_BY_VALUES = {"mae": "MeanAbsoluteError", "mse": "MeanSquaredError", "r2": "R2Score"}


class StepOutput(NamedTuple):
    """What a step returns: its loss (a scalar), and outputs and targets for the metrics if it has them."""

    loss: Tensor
    outputs: Any = None
    targets: Any = None


def build_metrics(spec: Metrics, task: Task, num_outputs: int | None) -> dict[str, torchmetrics.Metric]:
    """Return fresh metrics by name; for None those that go with the task.

    Args:
        spec: names, torchmetrics objects, a list of either, or a mapping of name to either.

    Raises:
        ArgumentError: there is no such metric for this task, or two have one name.
    """
    if isinstance(spec, Mapping):
        return {name: _build(one, task, num_outputs) for name, one in spec.items()}
    if spec is None:
        spec = _DEFAULT[task.kind]
    listed = list(spec) if isinstance(spec, Collection) and not isinstance(spec, str) else [spec]
    names = [_name(one) for one in listed]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ArgumentError(
            f"Two metrics would be called {twice[0]!r}. Name them in a mapping, as metrics={{'top1': ..., "
            f"'top5': ...}}."
        )
    return {name: _build(one, task, num_outputs) for name, one in zip(names, listed, strict=True)}


class Meter:
    """The loss and the metrics of one pass over data.

    A metric is left out of a pass whose steps return a loss only.
    """

    def __init__(self, metrics: Mapping[str, torchmetrics.Metric], task: Task, device: torch.device) -> None:
        self._task = task
        self._metrics = {name: metric.clone().to(device) for name, metric in metrics.items()}
        double = torch.float32 if device.type == "mps" else torch.float64
        self._loss = torch.zeros((), dtype=double, device=device)
        self.samples = 0

    def update(self, step: StepOutput, samples: int) -> None:
        """Add one batch of `samples` samples."""
        self._loss += step.loss.detach().to(self._loss.dtype) * samples
        self.samples += samples
        if isinstance(step.outputs, Tensor) and isinstance(step.targets, Tensor):
            self._update_metrics(step.outputs.detach(), step.targets.detach())

    def compute(self) -> dict[str, float]:
        """Return `loss` first, then the metrics, as numbers."""
        values = {"loss": float(self._loss) / max(1, self.samples)}
        seen = {name: metric for name, metric in self._metrics.items() if metric.update_called}
        return values | {name: _number(name, metric.compute()) for name, metric in seen.items()}

    def reset(self) -> None:
        """Start a new pass."""
        self._loss.zero_()
        self.samples = 0
        for metric in self._metrics.values():
            metric.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return what is accumulated so far; the values seen are joined where a metric keeps them all."""
        return {
            "loss": self._loss,
            "samples": self.samples,
            "metrics": {name: _state_of(metric) for name, metric in self._metrics.items() if metric.update_called},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.reset()
        self._loss += state["loss"].to(self._loss.device)
        self.samples = state["samples"]
        for name, saved in state["metrics"].items():
            metric = self._metrics[name]
            for key, value in saved["state"].items():
                moved = None if value is None else value.to(metric.device)
                listed = [] if moved is None else [moved]
                vars(metric)[key] = listed if isinstance(metric.metric_state[key], list) else moved
            metric._update_count = saved["updates"]

    def _update_metrics(self, outputs: Tensor, targets: Tensor) -> None:
        predictions = self._task.probabilities(outputs.float())
        kind, columns = self._task.kind, predictions.dim() > 1 and predictions.shape[-1] > 1
        if kind == BINARY or (kind == REGRESSION and not columns):
            predictions, targets = predictions.flatten(), targets.flatten()
        if kind == CLASSIFICATION:
            targets = class_indices(targets, predictions)
        elif kind in (BINARY, MULTILABEL):
            targets = targets.long()
        for metric in self._metrics.values():
            metric.update(predictions, targets)


def higher_is_better(name: str, metrics: Mapping[str, torchmetrics.Metric]) -> bool:
    """Tell which way a monitored value, such as `val_accuracy` or `loss`, gets better."""
    metric = metrics.get(name.removeprefix("val_"))
    return bool(metric is not None and metric.higher_is_better)


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ArgumentError(
        f"The metric {name!r} should give one number, but gives {got}. Set its average, as average='macro'."
    )


def _state_of(metric: torchmetrics.Metric) -> dict[str, Any]:
    from torchmetrics.utilities import dim_zero_cat

    state = {
        key: (dim_zero_cat(values) if values else None) if isinstance(values, list) else values
        for key, values in metric.metric_state.items()
    }
    return {"state": state, "updates": metric._update_count}


def _name(spec: MetricSpec) -> str:
    return spec if isinstance(spec, str) else type(spec).__name__.lower()


def _build(spec: MetricSpec, task: Task, num_outputs: int | None) -> torchmetrics.Metric:
    import torchmetrics
    from torchmetrics import classification, regression

    if isinstance(spec, torchmetrics.Metric):
        return spec
    if task.kind in _PREFIX and spec in _BY_CLASSES:
        make: type[torchmetrics.Metric] = getattr(classification, _PREFIX[task.kind] + _BY_CLASSES[spec])
        # Checking the values of every batch would make the host wait for the device at every step.
        return make(**_sizes(task, spec, num_outputs), validate_args=False)
    if task.kind == REGRESSION and spec in _BY_VALUES:
        metric: torchmetrics.Metric = getattr(regression, _BY_VALUES[spec])()
        return metric
    known = [*(_BY_CLASSES if task.kind in _PREFIX else ()), *(_BY_VALUES if task.kind == REGRESSION else ())]
    raise ArgumentError(
        f"There is no metric {spec!r} for {task.kind or 'a loss of your own'}.{nearest(str(spec), known)} Expected "
        f"one of {', '.join(known) or 'no name'}, or a torchmetrics object."
    )


def _sizes(task: Task, spec: str, num_outputs: int | None) -> dict[str, Any]:
    if task.kind == BINARY:
        return {}
    if task.kind == CLASSIFICATION and spec == "accuracy":  # the share that is right, for any number of classes
        return {"num_classes": num_outputs or 2, "average": "micro"}
    if num_outputs is None:
        raise ArgumentError(
            f"The metric {spec!r} needs the number of outputs, which the model's head does not tell. Give a "
            f"torchmetrics object instead, as metrics={{'accuracy': MulticlassAccuracy(num_classes=5)}}."
        )
    if task.kind == MULTILABEL:
        return {"num_labels": num_outputs}
    return {"num_classes": num_outputs, "average": "macro"}
