"""The loss and the metrics over a whole pass, exact for any batch size.

`METRICS` is the table of names; a new metric is one entry. Losses are weighted by the number of samples. Metrics are
those of torchmetrics, whose state accumulates over batches: an F1 is that of the dataset, not a mean over batches.
Everything stays on the device until it is read once at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from finetune.errors import ArgumentError, nearest
from finetune.training.tasks import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION, Task, class_indices

if TYPE_CHECKING:
    import torchmetrics

MetricSpec: TypeAlias = "str | torchmetrics.Metric"
Metrics: TypeAlias = "Mapping[str, MetricSpec] | Sequence[MetricSpec] | MetricSpec | None"


class StepOutput(NamedTuple):
    """Result of `training_step` or `validation_step`.

    Attributes:
        loss: Scalar loss.
        outputs: Outputs of the model, [N, ...], for the metrics; None to skip the metrics.
        targets: Targets, [N, ...], for the metrics; None to skip the metrics.

    Example:
        >>> from finetune import FineTuner
        >>> class Focal(FineTuner):
        ...     def training_step(self, batch):
        ...         inputs, targets = batch
        ...         logits = self.model(inputs)
        ...         losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        ...         return StepOutput(((1 - (-losses).exp()) ** 2 * losses).mean(), logits, targets)
        >>> history = Focal(torch.nn.Linear(4, 2), device="cpu").fit((torch.randn(8, 4), torch.arange(8) % 2))
        >>> list(history[0])[:4]
        ['epoch', 'phase', 'loss', 'accuracy']
    """

    loss: Tensor
    outputs: Any = None
    targets: Any = None


@dataclass(frozen=True)
class NamedMetric:
    """A metric that `FineTuner(metrics=...)` accepts by name.

    Attributes:
        build: Function from the kind of task and the number of outputs (None if unknown) to a torchmetrics object,
            which is updated with probabilities, or values for regression, and targets.
        kinds: Kinds of task that the metric applies to.

    Example:
        >>> from torchmetrics.classification import MulticlassMatthewsCorrCoef
        >>> METRICS["mcc"] = NamedMetric(lambda kind, n: MulticlassMatthewsCorrCoef(n), kinds=(CLASSIFICATION,))
        >>> from finetune import FineTuner
        >>> tuner = FineTuner(torch.nn.Linear(4, 2), metrics=["accuracy", "mcc"], device="cpu")
        >>> list(tuner.evaluate((torch.randn(8, 4), torch.arange(8) % 2)))
        ['loss', 'accuracy', 'mcc']
        >>> del METRICS["mcc"]
    """

    build: Callable[[str, int | None], torchmetrics.Metric]
    kinds: Collection[str]


_FAMILIES = {CLASSIFICATION: "Multiclass", BINARY: "Binary", MULTILABEL: "Multilabel"}


def _classification_metric(suffix: str) -> NamedMetric:
    """Return the entry of a metric with a multiclass, a binary and a multilabel form in torchmetrics."""

    def build(kind: str, num_outputs: int | None) -> torchmetrics.Metric:
        from torchmetrics import classification

        name = _FAMILIES[kind] + suffix
        metric: type[torchmetrics.Metric] = getattr(classification, name)
        # Validating the values of every batch would make the host wait for the device at every step.
        return metric(**_sizes(kind, name, num_outputs), validate_args=False)

    return NamedMetric(build, kinds=tuple(_FAMILIES))


def _regression_metric(name: str) -> NamedMetric:
    def build(kind: str, num_outputs: int | None) -> torchmetrics.Metric:
        from torchmetrics import regression

        metric: torchmetrics.Metric = getattr(regression, name)()
        return metric

    return NamedMetric(build, kinds=(REGRESSION,))


def _sizes(kind: str, name: str, num_outputs: int | None) -> dict[str, Any]:
    """Return the arguments that depend on the number of outputs."""
    if kind == BINARY:
        return {}
    if name == "MulticlassAccuracy":  # micro-averaged, so the number of classes does not matter
        return {"num_classes": num_outputs or 2, "average": "micro"}
    size = "num_labels" if kind == MULTILABEL else "num_classes"
    if num_outputs is None:
        raise ArgumentError(
            f"The metric {name} needs the number of outputs, which is unknown for the head of this model. Pass a "
            f"torchmetrics object instead: metrics=[{name}({size}=5)]."
        )
    return {size: num_outputs} if kind == MULTILABEL else {size: num_outputs, "average": "macro"}


METRICS: dict[str, NamedMetric] = {
    "accuracy": _classification_metric("Accuracy"),
    "f1": _classification_metric("F1Score"),
    "precision": _classification_metric("Precision"),
    "recall": _classification_metric("Recall"),
    "auroc": _classification_metric("AUROC"),
    "average_precision": _classification_metric("AveragePrecision"),
    "mae": _regression_metric("MeanAbsoluteError"),
    "mse": _regression_metric("MeanSquaredError"),
    "r2": _regression_metric("R2Score"),
}

_DEFAULT: dict[str | None, tuple[str, ...]] = {
    CLASSIFICATION: ("accuracy",),
    BINARY: ("accuracy",),
    MULTILABEL: ("accuracy",),
    REGRESSION: ("mae",),
    None: (),
}


def build_metrics(spec: Metrics, task: Task, num_outputs: int | None) -> dict[str, torchmetrics.Metric]:
    """Return new metrics by name.

    Args:
        spec: Names from `METRICS`, torchmetrics objects, a list of either, or a mapping of name to either. None for
            the default metrics of the task.
        task: Task that the metrics are computed for.
        num_outputs: Number of outputs of the model; None if unknown.

    Raises:
        ArgumentError: If the task has no such metric, or two metrics share a name.
    """
    if isinstance(spec, Mapping):
        return {name: _build(one, task, num_outputs) for name, one in spec.items()}
    if spec is None:
        spec = _DEFAULT[task.kind]
    listed = list(spec) if isinstance(spec, Collection) and not isinstance(spec, str) else [spec]
    names = [_name(one) for one in listed]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ArgumentError(
            f"Two metrics would be called {repeated[0]!r}. Name them in a mapping: metrics={{'top1': ..., "
            f"'top5': ...}}."
        )
    return {name: _build(one, task, num_outputs) for name, one in zip(names, listed, strict=True)}


class Meter:
    """Accumulator of the loss and the metrics over one pass through the data.

    Metrics are left out if every step returned only a loss.

    Args:
        metrics: Metrics by name, cloned before use.
        task: Task that turns outputs into probabilities.
        device: Device on which the values are accumulated.

    Attributes:
        samples: Number of samples so far.
    """

    def __init__(self, metrics: Mapping[str, torchmetrics.Metric], task: Task, device: torch.device) -> None:
        self._task = task
        self._metrics = {name: metric.clone().to(device) for name, metric in metrics.items()}
        double = torch.float32 if device.type == "mps" else torch.float64
        self._loss = torch.zeros((), dtype=double, device=device)
        self.samples = 0

    def update(self, step: StepOutput, samples: int) -> None:
        """Add a batch of `samples` samples."""
        self._loss += step.loss.detach().to(self._loss.dtype) * samples
        self.samples += samples
        if isinstance(step.outputs, Tensor) and isinstance(step.targets, Tensor):
            self._update_metrics(step.outputs.detach(), step.targets.detach())

    def compute(self) -> dict[str, float]:
        """Return the values by name, `loss` first. This waits for the device."""
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
        """Return the accumulated state as tensors and numbers; lists of tensors are concatenated."""
        return {
            "loss": self._loss,
            "samples": self.samples,
            "metrics": {name: _state_of(metric) for name, metric in self._metrics.items() if metric.update_called},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
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
    """Return whether a monitored value, such as `val_accuracy` or `loss`, improves by rising."""
    metric = metrics.get(name.removeprefix("val_"))
    return bool(metric is not None and metric.higher_is_better)


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ArgumentError(
        f"Expected the metric {name!r} to return one number, but got {got}. Set how it averages, as in average='macro'."
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

    if isinstance(spec, torchmetrics.Metric):
        return spec
    known = {name: metric for name, metric in METRICS.items() if task.kind in metric.kinds}
    if task.kind is None or spec not in known:
        raise ArgumentError(
            f"There is no metric {spec!r} for {task.kind or 'a custom loss'}.{nearest(str(spec), known)} Expected "
            f"{'one of ' + ', '.join(known) + ', or ' if known else ''}a torchmetrics object."
        )
    return known[spec].build(task.kind, num_outputs)
