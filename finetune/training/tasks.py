"""What kind of answer the model gives, and the loss that goes with it.

Class indices mean classification and cross-entropy; a row of zeros and ones a sample means
multi-label, and a single output for zeros and ones binary classification, both with binary
cross-entropy on logits; other floats mean regression and mean squared error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from finetune.errors import ArgumentError, DataError, nearest

Loss = Callable[[Tensor, Tensor], Tensor]

CLASSIFICATION, BINARY, MULTILABEL, REGRESSION = "classification", "binary", "multilabel", "regression"


@dataclass(frozen=True)
class Task:
    """A kind of answer with its loss.

    `kind` is one of the four kinds, or None where only the user's own loss knows.
    """

    kind: str | None
    loss: Loss

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Turn logits [N, C] into what metrics read: probabilities, or values for regression."""
        if self.kind == CLASSIFICATION:
            return outputs.softmax(1)
        return outputs.sigmoid() if self.kind in (BINARY, MULTILABEL) else outputs


def infer_task(loss: str | Loss | None, targets: Tensor | None, num_outputs: int | None) -> Task:
    """Return the task that the loss names, or else the one that the targets show.

    Args:
        loss: `"cross_entropy"`, `"bce"`, `"mse"`, a function of outputs and targets, or None.
        targets: some or all targets, [N] or [N, K]; None if they are not known.
        num_outputs: how many outputs the model gives; None if that is not known.

    Raises:
        ArgumentError: there is no such loss.
        DataError: targets and outputs do not go together.
    """
    kind = _kind_of_loss(loss, num_outputs) or _kind_of_targets(targets, num_outputs)
    if getattr(loss, "reduction", "mean") != "mean":
        raise ArgumentError(
            f"The loss has reduction={getattr(loss, 'reduction', None)!r}, so that it depends on the batch size. "
            f"Expected reduction='mean': batches are weighted by their samples here."
        )
    if callable(loss):
        return Task(kind, _aligned(loss))
    return Task(kind, _LOSSES[kind]) if kind else Task(None, F.cross_entropy)


def task_of_kind(loss: str | Loss | None, kind: str) -> Task:
    """Return the task of this kind, with the user's own loss if it is a function."""
    return Task(kind, _aligned(loss) if callable(loss) else _LOSSES[kind])


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [N, C] against class indices [N] or probabilities [N, C]."""
    soft = targets.is_floating_point() and targets.shape == outputs.shape
    return F.cross_entropy(outputs.float(), targets if soft else class_indices(targets, outputs))


def class_indices(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return int64 class indices, the likeliest where `targets` are probabilities; [N, 1] becomes [N]."""
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return targets.argmax(1)
    column = targets.dim() == outputs.dim() == 2 and targets.shape[1] == 1
    return (targets[:, 0] if column else targets).long()


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of logits against zeros and ones; [N, 1] goes with [N]."""
    return F.binary_cross_entropy_with_logits(outputs.float(), _shaped(targets, outputs).float())


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error; [N, 1] goes with [N]."""
    return F.mse_loss(outputs.float(), _shaped(targets, outputs).float())


_LOSSES: dict[str, Loss] = {
    CLASSIFICATION: cross_entropy,
    BINARY: binary_cross_entropy,
    MULTILABEL: binary_cross_entropy,
    REGRESSION: mean_squared_error,
}


def _kind_of_loss(loss: str | Loss | None, num_outputs: int | None) -> str | None:
    several = MULTILABEL if (num_outputs or 1) > 1 else BINARY
    named = {"cross_entropy": CLASSIFICATION, "bce": several, "mse": REGRESSION}
    if isinstance(loss, str):
        if loss not in named:
            raise ArgumentError(
                f"There is no loss {loss!r}.{nearest(loss, named)} Expected one of {', '.join(named)}, or a function "
                f"of outputs and targets."
            )
        return named[loss]
    if isinstance(loss, nn.CrossEntropyLoss):
        return CLASSIFICATION
    if isinstance(loss, nn.BCEWithLogitsLoss):
        return several
    return REGRESSION if isinstance(loss, (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)) else None


def _kind_of_targets(targets: Tensor | None, num_outputs: int | None) -> str | None:
    if targets is None:
        return None
    zeros_and_ones = bool(((targets == 0) | (targets == 1)).all())
    if targets.dim() > 1 and targets.shape[-1] > 1:
        return MULTILABEL if zeros_and_ones else REGRESSION
    if targets.is_floating_point():
        return BINARY if zeros_and_ones and num_outputs == 1 else REGRESSION
    if num_outputs != 1:
        return CLASSIFICATION
    if zeros_and_ones:
        return BINARY
    raise DataError(
        f"The model has one output, but the labels are class indices up to {int(targets.max())}. Expected 0 and 1. "
        f"Give the model one output a class with replace_head({int(targets.max()) + 1}), or use float targets."
    )


def _aligned(loss: Loss) -> Loss:
    """Keep [N, 1] and [N] from broadcasting to [N, N] in a loss of the user's own."""

    def of_same_shape(outputs: Any, targets: Any) -> Tensor:
        both = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
        shapes = {tuple(outputs.shape), tuple(targets.shape)} if both else set()
        if both and shapes == {(len(targets),), (len(targets), 1)}:
            targets = targets.reshape(outputs.shape)
            targets = targets if targets.is_floating_point() else targets.float()
        return loss(outputs, targets)

    return of_same_shape


def _shaped(targets: Tensor, outputs: Tensor) -> Tensor:
    if targets.shape == outputs.shape:
        return targets
    if targets.numel() == outputs.numel():
        return targets.reshape(outputs.shape)
    raise DataError(
        f"The model gives outputs of shape {list(outputs.shape)}, but the targets have shape {list(targets.shape)}. "
        f"Expected the same shape; set the number of outputs with replace_head(n)."
    )
