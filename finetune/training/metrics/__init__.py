"""The loss and the metrics over a whole pass, exact for any batch size.

`METRICS` is the table of names; a new metric is one entry. Losses are weighted by the number of samples. Metrics are
those of torchmetrics, whose state accumulates over batches: an F1 is that of the dataset, not a mean over batches.
Everything stays on the device until it is read once at the end.

A mean over classes is one over those for which the metric is defined: a class that the data lacks has no AUROC, and
does not count as 0. Without any such class the metric is NaN.
"""

from __future__ import annotations

from finetune.training.metrics.build import Metrics, build_metrics, higher_is_better, metric_names
from finetune.training.metrics.meter import Meter, StepOutput, part_of, shares_of, weight_of
from finetune.training.metrics.named import METRICS, NamedMetric
from finetune.training.metrics.trial import try_metrics

__all__ = [
    "METRICS",
    "Meter",
    "Metrics",
    "NamedMetric",
    "StepOutput",
    "build_metrics",
    "higher_is_better",
    "metric_names",
    "part_of",
    "shares_of",
    "try_metrics",
    "weight_of",
]
