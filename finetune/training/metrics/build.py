"""Metrics by name from the user's choice, and the better direction of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from finetune.errors import ArgumentError, one_of
from finetune.training.history import BOOKKEEPING
from finetune.training.metrics.named import DEFAULTS, METRICS
from finetune.training.tasks import Task

if TYPE_CHECKING:
    import torchmetrics

MetricFunction: TypeAlias = Callable[[Tensor, Tensor], "Tensor | float"]
MetricSpec: TypeAlias = "str | torchmetrics.Metric | MetricFunction"
Metrics: TypeAlias = (
    "Mapping[str, MetricSpec] | Sequence[MetricSpec] | MetricSpec | torchmetrics.MetricCollection | None"
)


def metric_names(spec: Metrics) -> list[str]:
    """Return the names of metrics, or all that a task may have by default, before the task is known."""
    if spec is None:
        return list(dict.fromkeys(name for names in DEFAULTS.values() for name in names))
    return list(_by_name(spec))


def build_metrics(
    spec: Metrics, task: Task, num_outputs: int | None, *, guessed: bool = False
) -> dict[str, torchmetrics.Metric]:
    """Return new metrics by name.

    Args:
        spec: Names from `METRICS`, torchmetrics objects, functions of all outputs and targets of a pass, a list of
            these, or a mapping of name to one. None for the default metrics of the task.
        task: Task that the metrics are computed for.
        num_outputs: Number of outputs of the model; None if unknown.
        guessed: Whether a custom step may show that the task is another one. Metrics that do not fit are then left
            out, and a `Meter` adds them at the first step.

    Raises:
        ArgumentError: If the task has no such metric, or a name is taken.
    """
    named = _by_name(DEFAULTS[task.kind] if spec is None else spec)
    for name in named:
        if name in ("loss", *BOOKKEEPING) or not isinstance(name, str) or name.startswith("val_"):
            raise ArgumentError(
                f"The history cannot call a metric {name!r}. Expected a name other than loss, {', '.join(BOOKKEEPING)} "
                f"and those that start with val_. Rename it: metrics={{'own': ...}}."
            )
    try:
        return {name: _build(one, task, num_outputs) for name, one in named.items()}
    except ArgumentError:
        if guessed:
            return {}
        raise


def higher_is_better(name: str, metrics: Mapping[str, torchmetrics.Metric], mode: str | None = None) -> bool:
    """Return whether a monitored value, such as `val_accuracy` or `loss`, improves by rising.

    Args:
        name: Name of the value.
        metrics: Metrics of the run by name.
        mode: `"max"` or `"min"`, which decides; None to ask the metric.

    Raises:
        ArgumentError: If `mode` is neither, or it is None and the metric does not say which way is better.
    """
    if mode not in (None, "max", "min"):
        raise ArgumentError(f"Expected mode to be 'max', 'min' or None, but got {mode!r}.")
    metric = metrics.get(name.removeprefix("val_"))
    better = False if metric is None else metric.higher_is_better
    if mode is None and better is None:
        raise ArgumentError(
            f"The metric {name!r} does not say whether a higher value is better. Pass mode='max' if it is, or "
            f"mode='min' if a lower one is."
        )
    return bool(better) if mode is None else mode == "max"


def _by_name(spec: Any) -> Mapping[str, Any]:
    import torchmetrics

    def flat(name: Any, one: Any) -> list[tuple[Any, Any]]:
        """Return a metric with its name, or those of a collection, which a name in a mapping precedes."""
        if not isinstance(one, torchmetrics.MetricCollection):
            return [(_name(one) if name is None else name, one)]
        return [(own if name is None else f"{name}_{own}", metric) for own, metric in one.items()]

    if isinstance(spec, Mapping) and not isinstance(spec, torchmetrics.MetricCollection):
        pairs = [pair for name, one in spec.items() for pair in flat(name, one)]
    else:
        whole = isinstance(spec, str) or callable(spec) or not isinstance(spec, Collection)
        pairs = [pair for one in ([spec] if whole else spec) for pair in flat(None, one)]
    names = [name for name, _ in pairs]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ArgumentError(
            f"Two metrics would be called {repeated[0]!r}. Name them in a mapping: metrics={{'top1': ..., "
            f"'top5': ...}}."
        )
    return dict(pairs)


def _name(spec: Any) -> str:
    if isinstance(spec, str):
        return spec
    name: str = getattr(spec, "__name__", type(spec).__name__.lower())
    if not name.isidentifier():
        raise ArgumentError(f"The metric {spec!r} has no name. Name it in a mapping: metrics={{'own': ...}}.")
    return name


def _build(spec: Any, task: Task, num_outputs: int | None) -> torchmetrics.Metric:
    import torchmetrics

    if isinstance(spec, torchmetrics.Metric):
        return spec
    if isinstance(spec, type):
        raise ArgumentError(
            f"Expected a metric, but got the class {spec.__name__}. Pass {spec.__name__}(...), an instance."
        )
    if callable(spec):
        from finetune.training.metrics.function_metric import FunctionMetric

        return FunctionMetric(spec)
    kind = task.kind or "custom"
    known = [name for name, metric in METRICS.items() if kind in metric.kinds]
    name = one_of(f"{kind} metric", spec, known, "a torchmetrics object, or a function of outputs and targets")
    return METRICS[name].build(kind, num_outputs)
