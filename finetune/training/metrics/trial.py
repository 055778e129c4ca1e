"""A trial of metrics on a few samples, before training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL
from finetune.training.metrics.meter import Meter, StepOutput
from finetune.training.tasks import Task

if TYPE_CHECKING:
    import torchmetrics


def try_metrics(metrics: Mapping[str, torchmetrics.Metric], task: Task, outputs: Any, targets: Any) -> None:
    """Try copies of the metrics on the outputs and targets of a few samples, filled up to samples of every class.

    Args:
        metrics: Metrics by name, which are unchanged.
        task: Task that the metrics are computed for.
        outputs: Outputs [N, ...] of the model. Nothing is tried if they or the targets are no tensor.
        targets: Targets [M, ...] of any samples.

    Raises:
        ArgumentError: If a metric does not fit the outputs and targets. The error names it.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not metrics:
        return
    count = min(len(outputs), len(targets))
    outputs, targets = _filled_up(outputs[:count].detach(), targets[:count].detach().to(outputs.device), task.kind)
    meter = Meter(metrics, task, outputs.device, warn=lambda message: None)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        meter.update(StepOutput(outputs.new_zeros(()), outputs, targets), len(outputs))
        meter.compute()


def _filled_up(outputs: Tensor, targets: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
    """Return more outputs and targets of the same form, which hold every class; some metrics need that."""
    classes = outputs.shape[1] if outputs.dim() > 1 else 1
    flat = outputs.dim() <= 2  # the samples of a mask are its pixels, of which there are enough
    count = max(len(outputs), min(max(16, 2 * classes), 2**22 // classes)) if flat else len(outputs)
    index = torch.arange(count, device=outputs.device)
    scale = torch.linspace(0.5, 1.0, count, device=outputs.device).reshape(-1, *[1] * (outputs.dim() - 1))
    more, given = outputs[index % len(outputs)] * scale, targets[index % len(targets)]
    order = torch.arange(given.numel(), device=given.device)
    indices = not given.is_floating_point() and outputs.dim() > 1 and classes > 1
    if (kind == CLASSIFICATION and given.shape != more.shape) or (kind is None and indices):
        given = (order % classes).reshape(given.shape).to(given.dtype)
    elif kind in (BINARY, MULTILABEL):
        given = ((order // given[0].numel()) % 2).reshape(given.shape).to(given.dtype)
    return more, given
