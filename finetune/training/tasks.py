"""The kinds of task, inferred from the loss or the targets, and their default losses.

Targets that are class indices mean classification with cross-entropy. Rows of zeros and ones mean multi-label
classification, and zeros and ones for a single output binary classification, both with binary cross-entropy on logits.
Other floats mean regression with mean squared error.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.errors import ArgumentError, DataError, nearest

Loss = Callable[[Tensor, Tensor], Tensor]

CLASSIFICATION, BINARY, MULTILABEL, REGRESSION = "classification", "binary", "multilabel", "regression"


@dataclass(frozen=True)
class Task:
    """A kind of task with its loss.

    Attributes:
        kind: `"classification"`, `"binary"`, `"multilabel"` or `"regression"`; None for an unknown custom loss.
        loss: Function of outputs and targets that returns a scalar.

    Example:
        >>> import torch
        >>> task = infer_task(None, torch.tensor([0, 2, 1]), num_outputs=3)
        >>> task.kind, task.loss.__name__
        ('classification', 'cross_entropy')
    """

    kind: str | None
    loss: Loss

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Convert logits [N, C] to the input of metrics: probabilities, or the values themselves for regression.

        Example:
            >>> import torch
            >>> Task("binary", F.binary_cross_entropy_with_logits).probabilities(torch.zeros(2, 1))
            tensor([[0.5000], [0.5000]])
        """
        if self.kind == CLASSIFICATION:
            return outputs.softmax(1)  # the softmax of log-probabilities, as for nn.NLLLoss, are the probabilities
        logits = self.kind in (BINARY, MULTILABEL) and not self._takes_probabilities
        return outputs.sigmoid() if logits else outputs

    def counted(self, targets: Any) -> Tensor | None:
        """Return which class indices the loss counts, bool of the shape of `targets`; None for all.

        The loss leaves out the targets that equal its `ignore_index`.

        Example:
            >>> import torch
            >>> Task("classification", nn.CrossEntropyLoss(ignore_index=9)).counted(torch.tensor([0, 9, 1]))
            tensor([ True, False,  True])
        """
        index = self._ignore_index
        if index is None or not isinstance(targets, Tensor) or targets.is_floating_point():
            return None
        if self.loss is cross_entropy and targets.dim() < 2:
            return None  # checked when the data is read, and a look at the device here would wait for it
        return targets != index

    @cached_property
    def _ignore_index(self) -> int | None:
        return option_of(self.loss, "ignore_index") if self.kind == CLASSIFICATION else None

    @cached_property
    def _takes_probabilities(self) -> bool:
        return takes_probabilities(self.loss)


def infer_task(loss: str | Loss | None, targets: Tensor | None, num_outputs: int | None) -> Task:
    """Infer the task from the loss, or from the targets if the loss does not determine it.

    Args:
        loss: `"cross_entropy"`, `"bce"`, `"mse"`, a function of outputs and targets, or None.
        targets: Some or all targets, [N] or [N, K]; None if unknown.
        num_outputs: Number of outputs of the model; None if unknown.

    Raises:
        ArgumentError: If the loss is unknown, or is not a mean over the batch.
        DataError: If the targets do not match the number of outputs.
    """
    kind = _kind_of_loss(loss, num_outputs) or _kind_of_targets(targets, num_outputs)
    if getattr(loss, "reduction", "mean") != "mean":
        raise ArgumentError(
            f"The loss has reduction={getattr(loss, 'reduction', None)!r}, so it depends on the batch size. Expected "
            f"reduction='mean': the library weights each batch by its number of samples."
        )
    if callable(loss):
        return Task(kind, _aligned(loss))
    return Task(kind, _LOSSES[kind]) if kind else Task(None, F.cross_entropy)


def task_of_kind(loss: str | Loss | None, kind: str) -> Task:
    """Return a task of the given kind, with the custom loss if there is one."""
    return Task(kind, _aligned(loss) if callable(loss) else _LOSSES[kind])


def option_of(loss: Loss, name: str) -> Any:
    """Return an option of a loss, such as `label_smoothing`: an attribute, or the default of an argument; or None.

    Example:
        >>> from functools import partial
        >>> option_of(nn.CrossEntropyLoss(), "ignore_index"), option_of(F.cross_entropy, "label_smoothing")
        (-100, 0.0)
        >>> option_of(partial(F.cross_entropy, label_smoothing=0.1), "label_smoothing")
        0.1
    """
    own = inspect.unwrap(loss)
    if isinstance(own, nn.Module):
        return getattr(own, name, None)
    try:
        default = inspect.signature(own).parameters[name].default
    except (KeyError, TypeError, ValueError):
        return None
    return None if default is inspect.Parameter.empty else default


def takes_probabilities(loss: Loss) -> bool:
    """Return whether a loss takes probabilities in [0, 1], as `nn.BCELoss` does, and fails on other outputs.

    Example:
        >>> takes_probabilities(nn.BCELoss()), takes_probabilities(nn.BCEWithLogitsLoss())
        (True, False)
    """
    own = inspect.unwrap(loss)
    if isinstance(own, nn.BCELoss):
        return True  # its weights may fit no trial
    if isinstance(own, nn.Module) and own.state_dict():
        return False  # a trial could change its state

    def works(value: float, targets: Tensor) -> bool:
        try:
            return bool(loss(torch.full((2, 1), value), targets).isfinite())
        except Exception:
            return False

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        columns = torch.tensor([[0.0], [1.0]])
        return any(
            works(0.5, targets) and not works(2.0, targets) and not works(-1.0, targets)
            for targets in (columns, columns[:, 0])
        )


def cross_entropy(outputs: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Compute the cross-entropy of logits [N, C] with class indices [N] or probabilities [N, C]."""
    soft = targets.is_floating_point() and targets.shape == outputs.shape
    given = targets if soft else class_indices(targets, outputs)
    return F.cross_entropy(outputs.float(), given, ignore_index=ignore_index)


def class_indices(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return int64 class indices [N]: the likeliest class for probabilities [N, C], flattened for a column [N, 1]."""
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return targets.argmax(1)
    column = targets.dim() == outputs.dim() == 2 and targets.shape[1] == 1
    return (targets[:, 0] if column else targets).long()


def as_labels(targets: Tensor) -> Tensor:
    """Return class indices as int64 [N]; probabilities [N, C] are returned unchanged."""
    if targets.is_floating_point():
        return targets
    return (targets.flatten() if targets.dim() == 2 and targets.shape[1] == 1 else targets).long()


def number_of_classes(task: Task, num_outputs: int | None, callback: str) -> int:
    """Return the number of classes, for a callback that requires classification.

    Raises:
        ArgumentError: If the task is not classification, or the number of outputs is unknown.
    """
    if task.kind != CLASSIFICATION or num_outputs is None:
        raise ArgumentError(
            f"{callback} needs a classification task with one output per class, but this is "
            f"{task.kind or 'a custom loss'}. Remove the callback."
        )
    return num_outputs


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the binary cross-entropy of logits with zeros and ones; [N, 1] matches [N]."""
    return F.binary_cross_entropy_with_logits(outputs.float(), _shaped(targets, outputs).float())


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean squared error; [N, 1] matches [N]."""
    return F.mse_loss(outputs.float(), _shaped(targets, outputs).float())


_BINARY_CROSS_ENTROPIES = (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)

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
    if isinstance(loss, (nn.BCEWithLogitsLoss, nn.BCELoss)) or loss in _BINARY_CROSS_ENTROPIES:
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
        f"Give the model one output per class with replace_head({int(targets.max()) + 1}), or use float targets."
    )


def _aligned(loss: Loss) -> Loss:
    """Wrap a custom loss so that [N, 1] and [N] do not broadcast to [N, N]."""

    def aligned_loss(outputs: Any, targets: Any) -> Tensor:
        both = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
        shapes = {tuple(outputs.shape), tuple(targets.shape)} if both else set()
        if both and shapes == {(len(targets),), (len(targets), 1)}:
            targets = targets.reshape(outputs.shape)
            targets = targets if targets.is_floating_point() else targets.float()
        return loss(outputs, targets)

    aligned_loss.__wrapped__ = loss  # type: ignore[attr-defined]  # for inspect.unwrap
    return aligned_loss


def _shaped(targets: Tensor, outputs: Tensor) -> Tensor:
    if targets.shape == outputs.shape:
        return targets
    if targets.numel() == outputs.numel():
        return targets.reshape(outputs.shape)
    raise DataError(
        f"The model gives outputs of shape {list(outputs.shape)}, but the targets have shape {list(targets.shape)}. "
        f"Expected the same shape. Set the number of outputs with replace_head(n)."
    )
