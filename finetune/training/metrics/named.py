"""Metrics by name. `METRICS` is the table; a new metric is one entry."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError

if TYPE_CHECKING:
    import torchmetrics


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


def _classification_metric(suffix: str, defined: Callable[[Any], Tensor] | None = None) -> NamedMetric:
    """Return the entry of a metric with a multiclass, a binary and a multilabel form in torchmetrics.

    Args:
        suffix: Name in torchmetrics, without the form.
        defined: Function from the metric after a pass to the classes that the metric is defined for, bool [C], over
            which it is averaged. None for an average over all samples.
    """

    def build(kind: str, num_outputs: int | None) -> torchmetrics.Metric:
        from torchmetrics import classification

        name = _FAMILIES[kind] + suffix
        sizes = _sizes(kind, name, num_outputs)
        if defined is not None and sizes:
            sizes["average"] = "none"
        made = getattr(classification, name)
        # Validating the values of every batch would make the host wait for the device at every step.
        return _undefined_left_out(made, defined)(**sizes, validate_args=False)

    return NamedMetric(build, kinds=tuple(_FAMILIES))


def _regression_metric(name: str, defined: Callable[[Any], Tensor] | None = None) -> NamedMetric:
    def build(kind: str, num_outputs: int | None) -> torchmetrics.Metric:
        from torchmetrics import regression

        return _undefined_left_out(getattr(regression, name), defined)()

    return NamedMetric(build, kinds=(REGRESSION,))


@cache
def _undefined_left_out(metric: Any, defined: Callable[[Any], Tensor] | None) -> Callable[..., torchmetrics.Metric]:
    """Return the metric as a mean over the classes that it is defined for, or NaN if there are none."""
    if defined is None:
        return cast("Callable[..., torchmetrics.Metric]", metric)

    classes = defined

    class Defined(_counted_by_class(metric)):  # type: ignore[misc]
        def compute(self) -> Tensor:
            mask = classes(self)
            if not mask.any():
                return torch.full((), torch.nan, device=mask.device)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torchmetrics warns of the classes that are left out
                values: Tensor = super().compute()
            return values.reshape(-1)[mask].mean()

    return Defined


def _counted_by_class(metric: Any) -> Any:
    """Return a metric of hits and misses per class that counts these directly.

    torchmetrics counts all pairs of classes, which takes gigabytes for 20,000 classes.
    """
    from torchmetrics.classification import MulticlassStatScores

    if not issubclass(metric, MulticlassStatScores):
        return metric

    class Counted(metric):  # type: ignore[misc]
        def update(self, preds: Tensor, target: Tensor) -> None:
            predicted = preds.argmax(1) if preds.dim() == target.dim() + 1 else preds
            predicted, actual = predicted.flatten(), target.flatten()
            hits, answers, truths = (
                torch.bincount(classes, minlength=self.num_classes)
                for classes in (actual[predicted == actual], predicted, actual)
            )
            self._update_state(hits, answers - hits, len(actual) - answers - truths + hits, truths - hits)

    return Counted


def _are_ranked(metric: Any) -> Tensor:
    positive, samples = _positives(metric)
    return (positive > 0) & (positive < samples)


def _are_in_targets(metric: Any) -> Tensor:
    return _positives(metric)[0] > 0


def _are_in_targets_or_predictions(metric: Any) -> Tensor:
    found: Tensor = (metric.tp + metric.fp + metric.fn).reshape(-1) > 0
    return found


def _are_recallable(metric: Any) -> Tensor:
    found: Tensor = (metric.tp + metric.fn).reshape(-1) > 0
    return found


def _is_above_one_sample(metric: Any) -> Tensor:
    found: Tensor = metric.total.reshape(-1) > 1
    return found


def _positives(metric: Any) -> tuple[Tensor, int]:
    """Return the number of positive samples of each class [C], and the number of samples."""
    from torchmetrics.utilities import dim_zero_cat

    targets = dim_zero_cat(metric.target)
    classes = getattr(metric, "num_classes", None)
    if classes is not None:
        return torch.bincount(targets.flatten(), minlength=classes), targets.numel()
    columns = targets.reshape(-1, getattr(metric, "num_labels", None) or 1)
    return columns.sum(0), len(columns)


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
    return {size: num_outputs}


METRICS: dict[str, NamedMetric] = {
    "accuracy": _classification_metric("Accuracy"),
    "f1": _classification_metric("F1Score", _are_in_targets_or_predictions),
    "precision": _classification_metric("Precision", _are_in_targets_or_predictions),
    "recall": _classification_metric("Recall", _are_recallable),
    "auroc": _classification_metric("AUROC", _are_ranked),
    "average_precision": _classification_metric("AveragePrecision", _are_in_targets),
    "mae": _regression_metric("MeanAbsoluteError"),
    "mse": _regression_metric("MeanSquaredError"),
    "r2": _regression_metric("R2Score", _is_above_one_sample),
}

# Names of the metrics of a task whose user asks for none.
DEFAULTS: dict[str | None, tuple[str, ...]] = {
    CLASSIFICATION: ("accuracy",),
    BINARY: ("accuracy",),
    MULTILABEL: ("accuracy",),
    REGRESSION: ("mae",),
    None: (),
}


# Values that a metric cannot exceed. An axis and the interval of a mean end there.
_SHARES = ("accuracy", "f1", "precision", "recall", "auroc", "average_precision")
_BOUNDS = {**dict.fromkeys(_SHARES, (0.0, 1.0)), **dict.fromkeys(("loss", "mse", "mae"), (0.0, math.inf))}
_BOUNDS["r2"] = (-math.inf, 1.0)


def bounds(name: str) -> tuple[float, float]:
    """Return the lowest and the highest value of a metric, or of `"loss"`, as far as its name says.

    A loss of one's own may be negative.

    Example:
        >>> bounds("accuracy"), bounds("loss"), bounds("own")
        ((0.0, 1.0), (0.0, inf), (-inf, inf))
    """
    return _BOUNDS.get(name, (-math.inf, math.inf))


def rises(name: str) -> bool | None:
    """Return whether a higher value of a metric, or of `"loss"`, is better; None if its name does not say.

    Example:
        >>> rises("accuracy"), rises("loss"), rises("own")
        (True, False, None)
    """
    if name == "loss":
        return False
    if name not in METRICS:
        return None
    return METRICS[name].build(next(iter(METRICS[name].kinds)), 2).higher_is_better
