"""A trial of the loss and the metrics on a few samples, before training."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL
from finetune.errors import ArgumentError, DataError, reason
from finetune.threads.locks import GENERATORS
from finetune.training.metrics.meter import Meter, StepOutput
from finetune.training.tasks import LOG_PROBABILITIES, Loss, Task, is_custom, option_of, tried

if TYPE_CHECKING:
    import torchmetrics


def try_loss(loss: str | Loss | None, task: Task, logits: Tensor | None, targets: Tensor | None) -> None:
    """Try a loss on the logits and targets of a few samples. A custom loss that fails may need a whole batch.

    Args:
        loss: Loss of the tuner's settings.
        task: Task with that loss.
        logits: Logits [N, ...], or None to try nothing.
        targets: Targets [M, ...] of any samples, or None to try nothing.

    Raises:
        ArgumentError: If a custom loss takes the targets first, or is no mean.
        DataError: If the loss does not accept them.
    """
    if logits is None or targets is None:
        return
    _check_forms(loss, task, logits, targets)
    if is_custom(loss):
        _try_custom(task, logits, targets)
        return
    if logits.dim() == 0:
        fix = "Expected outputs [N, ...], one row per sample. Correct its forward; a mean belongs in the loss."
        raise DataError(f"The model returns one number for a batch. {fix}")
    outputs, given = logits[: len(targets)], targets[: len(logits)].to(logits.device)
    try:
        with torch.no_grad():
            task.loss(outputs, given)
    except DataError:
        raise
    except Exception as error:
        task.rule(outputs.shape[1] if outputs.dim() > 1 else None).check(targets.cpu(), "sample {}".format)
        raise DataError(
            f"The loss does not accept outputs of shape {list(outputs.shape)} with targets of shape "
            f"{list(given.shape)} and type {given.dtype}: {reason(error).rstrip('.')}. Correct the targets, set the "
            f"number of outputs with replace_head, or pass another loss."
        ) from error


def _try_custom(task: Task, logits: Tensor, targets: Tensor) -> None:
    """Check that a custom loss takes the outputs first, and is a mean over the batch, as far as a trial shows it."""
    if logits.dim() == 0 or not logits.is_floating_point() or not targets.dim():
        return
    count = min(len(logits), len(targets))
    outputs, given = _filled_up(logits[:count].detach(), targets[:count].to(logits.device), task.kind)
    value = tried(task.loss, outputs, given)
    if isinstance(value, Exception):
        if isinstance(tried(inspect.unwrap(task.loss), given, outputs), Tensor):
            raise ArgumentError(
                f"The loss fails on the outputs and targets ({reason(value).rstrip('.')}), but works on them in the "
                f"other order. Swap its arguments: it is called with the outputs first, then the targets."
            )
        return
    if not isinstance(value, Tensor) or value.numel() != 1 or not value:
        return
    twice = tried(task.loss, torch.cat([outputs, outputs]), torch.cat([given, given]))
    if isinstance(twice, Tensor) and torch.allclose(twice, 2 * value, rtol=1e-4):
        raise ArgumentError(
            "The loss of twice the samples is twice as high, so it depends on the batch size. Expected a mean: the "
            "library weights each batch by its number of samples. Divide it by len(targets)."
        )


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
    with GENERATORS.held(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        meter.update(StepOutput(outputs.new_zeros(()), outputs, targets), len(outputs))
        meter.compute()


def _check_forms(loss: str | Loss | None, task: Task, logits: Tensor, targets: Tensor) -> None:
    """Check that outputs and targets have the forms that a loss of torch takes, but computes from any numbers.

    Raises:
        DataError: If they are logits in place of log-probabilities, or the like.
    """
    divergence, name = _is_divergence(loss), getattr(loss, "__name__", type(loss).__name__)
    takes = LOG_PROBABILITIES if divergence else task.outputs if not is_custom(loss) else None
    if takes == LOG_PROBABILITIES and not _sum_to_one(logits.exp()):
        other = "" if divergence else ", or pass a loss that takes logits: nn.CrossEntropyLoss()"
        raise DataError(
            f"{name} takes log-probabilities, whose exponentials sum to 1 per sample, but the outputs of the model are "
            f"other numbers, such as {_shown(logits)}. Return outputs.log_softmax(1) from its forward{other}."
        )
    logs = divergence and callable(loss) and bool(option_of(loss, "log_target"))
    if divergence and not _sum_to_one(targets.exp() if logs else targets):
        raise DataError(
            f"{name} with log_target={logs} takes {'log-' if logs else ''}probabilities as targets, one row per "
            f"sample, but they are other numbers, such as {_shown(targets)}. Correct the targets, or set "
            f"log_target={not logs}."
        )


def _is_divergence(loss: Any) -> bool:
    function = loss.func if isinstance(loss, partial) else loss
    return function is F.kl_div or isinstance(function, nn.KLDivLoss)


def _sum_to_one(values: Tensor) -> bool:
    """Return whether values are not negative and sum to 1 along a dimension other than that of the samples."""
    if values.dim() < 2 or not values.is_floating_point():
        return False
    sums = (values.sum(dim) for dim in range(1, values.dim()))
    return bool((values >= 0).all()) and any(torch.allclose(s, torch.ones_like(s), atol=0.01) for s in sums)


def _shown(values: Tensor) -> list[Any]:
    return [round(number, 3) for number in values[0].flatten()[:4].tolist()]


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
