"""The kinds of task, inferred from the loss or the targets, and their default losses.

Targets that are class indices mean classification with cross-entropy. Rows of zeros and ones mean multi-label
classification, and zeros and ones for a single output binary classification, both with binary cross-entropy on logits.
Other floats mean regression with mean squared error. Targets that could mean several things are an error.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.data.targets import BINARY, CLASSIFICATION, IGNORED_IN_MAPS, MULTILABEL, REGRESSION, TargetRule
from finetune.errors import ArgumentError, DataError, one_of

Loss = Callable[[Tensor, Tensor], Tensor]

LOGITS, SCORES, PROBABILITIES, LOG_PROBABILITIES = "logits", "scores", "probabilities", "log-probabilities"


@dataclass(frozen=True)
class Task:
    """A kind of task with its loss.

    Attributes:
        kind: `"classification"`, `"binary"`, `"multilabel"` or `"regression"`; None for an unknown custom loss.
        loss: Function of outputs and targets that returns a scalar.
        why: Sentence for the user: the task, the reason for it, and how to choose another.
        inferred: Whether the kind was inferred from targets, so that later targets may contradict it.
        outputs: Outputs that the loss takes: `"logits"`, any `"scores"`, `"probabilities"` or `"log-probabilities"`.
        ignored: Target that the loss leaves out, or None.

    Example:
        >>> import torch
        >>> task = infer_task(None, torch.tensor([0, 2, 1]), num_outputs=3)
        >>> task.kind, task.loss.__name__
        ('classification', 'cross_entropy')
    """

    kind: str | None
    loss: Loss
    why: str = ""
    inferred: bool = False
    outputs: str = LOGITS
    ignored: int | None = None

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Convert outputs [N, C] to the input of metrics: probabilities, or the values themselves for regression.

        Example:
            >>> import torch
            >>> Task("binary", F.binary_cross_entropy_with_logits).probabilities(torch.zeros(2, 1))
            tensor([[0.5000], [0.5000]])
        """
        if self.outputs == PROBABILITIES:
            return outputs
        if self.kind == CLASSIFICATION:
            return outputs.softmax(1)  # of log-probabilities, these are the probabilities
        return outputs.sigmoid() if self.kind in (BINARY, MULTILABEL) else outputs

    def counted(self, targets: Any) -> Tensor | None:
        """Return which class indices the loss counts, bool of the shape of `targets`; None for all.

        The loss leaves out the targets that equal its `ignore_index`. The default loss does so in maps of labels
        only: a single label to ignore is an error before training, and a look at the device here would wait for it.

        Example:
            >>> import torch
            >>> task = infer_task(nn.CrossEntropyLoss(ignore_index=9), None, num_outputs=3)
            >>> task.counted(torch.tensor([0, 9, 1]))
            tensor([ True, False,  True])
        """
        if self.kind != CLASSIFICATION or not isinstance(targets, Tensor) or targets.is_floating_point():
            return None
        index = IGNORED_IN_MAPS if self.ignored is None and targets.dim() > 1 else self.ignored
        return None if index is None else targets != index

    def rule(self, num_outputs: int | None) -> TargetRule:
        """Return the targets that the task accepts, for a model with `num_outputs` outputs; None if unknown.

        Example:
            >>> infer_task("cross_entropy", None, num_outputs=3).rule(3).kind
            'classification'
        """
        return TargetRule(self.kind, num_outputs, ignored=self.ignored, soft=not self.inferred)


@dataclass(frozen=True)
class _Facts:
    """Facts about a loss of torch: its kind of task, None for binary or multi-label, and its inputs."""

    kind: str | None
    outputs: str = LOGITS


_LOSSES_OF_TORCH: dict[Any, _Facts] = {
    nn.CrossEntropyLoss: _Facts(CLASSIFICATION),
    F.cross_entropy: _Facts(CLASSIFICATION),
    nn.NLLLoss: _Facts(CLASSIFICATION, LOG_PROBABILITIES),
    F.nll_loss: _Facts(CLASSIFICATION, LOG_PROBABILITIES),
    nn.MultiMarginLoss: _Facts(CLASSIFICATION, SCORES),
    nn.BCEWithLogitsLoss: _Facts(None),
    F.binary_cross_entropy_with_logits: _Facts(None),
    nn.BCELoss: _Facts(None, PROBABILITIES),
    F.binary_cross_entropy: _Facts(None, PROBABILITIES),
    nn.MultiLabelSoftMarginLoss: _Facts(MULTILABEL),
    nn.MSELoss: _Facts(REGRESSION),
    F.mse_loss: _Facts(REGRESSION),
    nn.L1Loss: _Facts(REGRESSION),
    F.l1_loss: _Facts(REGRESSION),
    nn.SmoothL1Loss: _Facts(REGRESSION),
    F.smooth_l1_loss: _Facts(REGRESSION),
    nn.HuberLoss: _Facts(REGRESSION),
    F.huber_loss: _Facts(REGRESSION),
}

_NAMED: dict[str, _Facts] = {
    "cross_entropy": _Facts(CLASSIFICATION),
    "bce": _Facts(None),
    "mse": _Facts(REGRESSION),
}

_NOUNS = {
    CLASSIFICATION: "Classification with cross-entropy",
    BINARY: "Binary classification with binary cross-entropy",
    MULTILABEL: "Multi-label classification with binary cross-entropy",
    REGRESSION: "Regression with mean squared error",
}


# ---------------------------------------------------------------------- inference


def infer_task(
    loss: str | Loss | None, targets: Tensor | None, num_outputs: int | None, *, guess: bool = False
) -> Task:
    """Infer the task from the loss, or from the targets if the loss does not determine it.

    Args:
        loss: `"cross_entropy"`, `"bce"`, `"mse"`, a function of outputs and targets, or None.
        targets: Some or all targets, [N, ...]; None if unknown.
        num_outputs: Number of outputs of the model; None if unknown.
        guess: Whether to leave the kind open if the targets do not determine it, because a custom step knows it.

    Raises:
        ArgumentError: If the loss is unknown, or is not a mean over the batch.
        DataError: If the targets do not match the number of outputs, or could mean several tasks.
    """
    facts = _facts(loss)
    if _reduction(loss) not in ("mean", "batchmean"):
        raise ArgumentError(
            f"The loss has reduction={_reduction(loss)!r}, so it depends on the batch size. Expected "
            f"reduction='mean': the library weights each batch by its number of samples."
        )
    if facts is not None:
        kind = facts.kind or (MULTILABEL if (num_outputs or 1) > 1 else BINARY)
        return _task_with(loss, kind, f"{_named(loss, kind)}, as the loss says.")
    if targets is None:
        return Task(None, _aligned(loss) if callable(loss) else F.cross_entropy)
    try:
        kind, reason = _kind_of_targets(targets, num_outputs)
    except DataError:
        if loss is None and not guess:
            raise
        return _task_with(loss, None, "The task is known only to the loss, so there are no default metrics.")
    return _task_with(loss, kind, f"{_named(loss, kind)}: {reason}", inferred=True)


def task_of_kind(loss: str | Loss | None, kind: str) -> Task:
    """Return a task of the given kind, with the custom loss if there is one."""
    return _task_with(loss, kind, f"{_named(loss, kind)}, as in training.")


def numbers_are_targets(loss: str | Loss | None, task: Task | None, num_outputs: int | None) -> bool | None:
    """Return whether numbers as labels are the targets themselves (True) or name classes (False).

    None leaves it to the labels. A custom loss on a single output takes integers as numbers, because one output
    cannot tell several classes apart.
    """
    facts = _facts(loss)
    kind = facts.kind if facts is not None else task and task.kind
    if kind in (CLASSIFICATION, REGRESSION):
        return kind == REGRESSION
    return True if callable(loss) and facts is None and num_outputs == 1 else None


def check_names(task: Task, classes: Sequence[str] | None, labels: Tensor | None) -> None:
    """Check that a regression has no class names for targets.

    Raises:
        DataError: If the labels are names but the loss needs numbers.
    """
    if task.kind == REGRESSION and classes is not None and labels is not None and labels.dim() == 1:
        shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise DataError(
            f"The task is a regression, but the labels are names: {shown}. Expected numbers. To train on the classes, "
            f"call replace_head({len(classes)}) and omit the loss."
        )


def is_custom(loss: str | Loss | None) -> bool:
    """Return whether a loss is neither named nor one of torch whose kind of task is known.

    Example:
        >>> is_custom("mse"), is_custom(nn.MSELoss()), is_custom(lambda outputs, targets: outputs.mean())
        (False, False, True)
    """
    return callable(loss) and _facts(loss) is None


def _task_with(loss: str | Loss | None, kind: str | None, why: str, *, inferred: bool = False) -> Task:
    if not callable(loss):
        return Task(kind, _LOSSES[kind or CLASSIFICATION], why, inferred)
    facts = _facts(loss)
    ignored = option_of(loss, "ignore_index") if kind == CLASSIFICATION else None
    if facts is None:
        outputs = PROBABILITIES if kind in (BINARY, MULTILABEL) and takes_probabilities(loss) else LOGITS
        return Task(kind, _aligned(loss), why, inferred, outputs, ignored)
    return Task(kind, _typed(loss, kind), why, inferred, facts.outputs, ignored)


def _facts(loss: str | Loss | None) -> _Facts | None:
    """Return the facts about a loss that is named or comes from torch, or None.

    Raises:
        ArgumentError: If there is no loss of that name.
    """
    if isinstance(loss, str):
        return _NAMED[one_of("loss", loss, _NAMED, "a function of outputs and targets")]
    function = loss.func if isinstance(loss, partial) else loss
    mro = type(function).__mro__ if isinstance(function, nn.Module) else (function,)
    return next((_LOSSES_OF_TORCH[known] for known in mro if _is_known(known)), None)


def _is_known(function: Any) -> bool:
    try:
        return function in _LOSSES_OF_TORCH
    except TypeError:  # a callable that cannot be hashed
        return False


def _reduction(loss: Any) -> str:
    given = loss.keywords if isinstance(loss, partial) else vars(loss) if isinstance(loss, nn.Module) else {}
    return str(given.get("reduction", "mean"))


def _named(loss: str | Loss | None, kind: str) -> str:
    if not callable(loss):
        return _NOUNS[kind]
    name = getattr(loss, "__name__", type(loss).__name__)
    return f"{_NOUNS[kind].partition(' with')[0]} with {'a custom loss' if name == '<lambda>' else name}"


def _kind_of_targets(targets: Tensor, num_outputs: int | None) -> tuple[str, str]:
    """Return the kind of task and the reason for it, with the way to choose another."""
    if targets.is_complex():
        raise DataError("The targets are complex. Expected real numbers. Pass y.real.")
    zeros_and_ones = bool(((targets == 0) | (targets == 1)).all())
    if targets.dim() == 2 and targets.shape[1] > 1:
        return _kind_of_rows(targets, num_outputs, zeros_and_ones)
    if targets.is_floating_point():
        return _kind_of_floats(targets, num_outputs, zeros_and_ones)
    if num_outputs != 1:
        outputs = f" and the model has {num_outputs} outputs" if num_outputs else ""
        return CLASSIFICATION, f"the labels are classes{outputs}. Pass loss='mse' to train on the numbers instead."
    if zeros_and_ones:
        return BINARY, "the labels are 0 and 1 and the model has one output. Pass loss='mse' for a regression."
    low, high = int(targets.min()), int(targets.max())
    if low >= 0:
        fix = f"For classes, give the model one output per class with replace_head({high + 1}). "
    else:
        fix = "If the labels are -1 and 1, pass 0 and 1: (y > 0). " if {low, high} == {-1, 1} else ""
    raise DataError(
        f"The model has one output, but the labels are class indices up to {high}. Expected 0 and 1. {fix}For a "
        f"regression on the numbers, pass loss='mse'."
    )


def _kind_of_rows(targets: Tensor, num_outputs: int | None, zeros_and_ones: bool) -> tuple[str, str]:
    if zeros_and_ones:
        other = "If each sample has one class, pass loss='cross_entropy'."
        return MULTILABEL, f"each target is a row of zeros and ones. {other}"
    unknown = bool((targets == -1).any()) and bool(((targets == -1) | (targets == 0) | (targets == 1)).all())
    if unknown or not targets.is_floating_point():
        masks = "If -1 marks unknown labels, pass a loss that masks them. " if unknown else ""
        raise DataError(
            f"The targets are rows of {targets.shape[1]} whole numbers from {int(targets.min())} to "
            f"{int(targets.max())}, which could mean several tasks. Expected zeros and ones for several labels per "
            f"sample, or floats for a regression. {masks}For a regression on the numbers, pass loss='mse'."
        )
    sums = targets.sum(1)
    probabilities = bool(((targets >= 0) & (targets <= 1)).all()) and bool(torch.isclose(sums, torch.ones(())).all())
    if probabilities and targets.shape[1] == num_outputs:
        other = "Pass loss='mse' for a regression."
        return CLASSIFICATION, f"each target is a row of probabilities that sum to 1. {other}"
    return REGRESSION, "each target is a row of decimal numbers. Pass loss='bce' for probabilities of several labels."


def _kind_of_floats(targets: Tensor, num_outputs: int | None, zeros_and_ones: bool) -> tuple[str, str]:
    if num_outputs == 1 and zeros_and_ones:
        return BINARY, "the targets are 0 and 1 and the model has one output. Pass loss='mse' for a regression."
    elementwise = targets.dim() > 2
    if num_outputs in (None, 1) or elementwise:
        return REGRESSION, "the targets are decimal numbers. Pass loss='bce' for probabilities."
    whole = bool((targets == targets.round()).all())
    classes = "For classes, pass whole numbers: y.long(). " if whole else ""
    raise DataError(
        f"The targets are decimal numbers, one per sample, which mean regression, but the model has {num_outputs} "
        f"outputs. {classes}For a regression, give the model one output with replace_head(1)."
    )


# ---------------------------------------------------------------------- losses


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


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy of logits [N, C] with class indices [N] or probabilities [N, C]."""
    return F.cross_entropy(outputs.float(), _for_classes(targets, outputs))


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the binary cross-entropy of logits with zeros and ones; [N, 1] matches [N]."""
    return F.binary_cross_entropy_with_logits(outputs.float(), _shaped(targets, outputs).float())


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean squared error; [N, 1] matches [N]."""
    return F.mse_loss(outputs.float(), _shaped(targets, outputs).float())


_LOSSES: dict[str, Loss] = {
    CLASSIFICATION: cross_entropy,
    BINARY: binary_cross_entropy,
    MULTILABEL: binary_cross_entropy,
    REGRESSION: mean_squared_error,
}


def class_indices(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return int64 class indices [N]: the likeliest class for probabilities [N, C], flattened for a column [N, 1]."""
    if targets.shape == outputs.shape and targets.dim() > 1:
        return targets.argmax(1)
    column = targets.dim() == outputs.dim() == 2 and targets.shape[1] == 1
    return (targets[:, 0] if column else targets).long()


def as_labels(targets: Tensor) -> Tensor:
    """Return class indices as int64 [N]; probabilities [N, C] are returned unchanged."""
    labels = targets.flatten() if targets.dim() == 2 and targets.shape[1] == 1 else targets
    return targets if targets.is_floating_point() else labels.long()


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


def _for_classes(targets: Tensor, outputs: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the targets of a cross-entropy: probabilities [N, C] as floats, or class indices as int64."""
    rows = targets.shape == outputs.shape and targets.dim() > 1
    return targets.to(dtype) if rows else class_indices(targets, outputs)


def _typed(loss: Loss, kind: str | None) -> Loss:
    """Wrap a loss of torch so that it gets targets of the shape, type and device that it takes."""

    def typed_loss(outputs: Any, targets: Any) -> Tensor:
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            return loss(outputs, targets)
        wide = torch.promote_types(outputs.dtype, torch.float32)
        if isinstance(loss, nn.Module):
            for weight in loss.buffers():
                wide = torch.promote_types(wide, weight.dtype)
            loss.to(outputs.device, wide)
        fitted = _for_classes(targets, outputs, wide) if kind == CLASSIFICATION else _shaped(targets, outputs).to(wide)
        return loss(outputs.to(wide), fitted)

    typed_loss.__wrapped__ = loss  # type: ignore[attr-defined]  # for inspect.unwrap
    return typed_loss


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
    if targets.numel() == outputs.numel():
        return targets.reshape(outputs.shape)
    shapes = f"outputs of shape {list(outputs.shape)}, but the targets have shape {list(targets.shape)}"
    raise DataError(
        f"The model gives {shapes}. Expected the same shape. Set the number of outputs with "
        f"replace_head({targets.shape[1] if targets.dim() == 2 else 1})."
    )
