"""The kinds of task, inferred from the loss or the targets, and their default losses.

Targets that are class indices mean classification with cross-entropy. Rows of zeros and ones mean multi-label
classification, and zeros and ones for a single output binary classification, both with binary cross-entropy on logits.
Other floats mean regression with mean squared error. Targets that could mean several things are an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError, DataError, one_of
from finetune.training.tasks.losses import DEFAULT_LOSSES, Loss, aligned, option_of, takes_probabilities, typed
from finetune.training.tasks.task import LOG_PROBABILITIES, LOGITS, PROBABILITIES, SCORES, Task


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

# Losses as other libraries call them, in lower case without `_`.
_ELSEWHERE = {
    **dict.fromkeys(("binarycrossentropy", "bceloss", "bcewithlogits", "bcewithlogitsloss"), "'bce'"),
    **dict.fromkeys(("categoricalcrossentropy", "sparsecategoricalcrossentropy", "ce", "logloss"), "'cross_entropy'"),
    **dict.fromkeys(("meansquarederror", "mseloss", "l2", "l2loss"), "'mse'"),
    **dict.fromkeys(("meanabsoluteerror", "mae", "l1", "l1loss"), "torch.nn.L1Loss()"),
    **dict.fromkeys(("huber", "huberloss", "smoothl1"), "torch.nn.HuberLoss()"),
    **dict.fromkeys(("nll", "nllloss", "negativeloglikelihood"), "torch.nn.NLLLoss()"),
    **dict.fromkeys(("kldivergence", "kldiv", "kldivloss"), "torch.nn.KLDivLoss(reduction='batchmean')"),
}

_NOUNS = {
    CLASSIFICATION: "Classification with cross-entropy",
    BINARY: "Binary classification with binary cross-entropy",
    MULTILABEL: "Multi-label classification with binary cross-entropy",
    REGRESSION: "Regression with mean squared error",
}


# ---------------------------------------------------------------------- inference


def infer_task(
    loss: str | Loss | None,
    targets: Tensor | None,
    num_outputs: int | None,
    *,
    guess: bool = False,
    named: bool = False,
) -> Task:
    """Infer the task from the loss, or from the targets if the loss does not determine it.

    Args:
        loss: `"cross_entropy"`, `"bce"`, `"mse"`, a function of outputs and targets, or None.
        targets: Some or all targets, [N, ...]; None if unknown.
        num_outputs: Number of outputs of the model; None if unknown.
        guess: Whether to leave the kind open if the targets do not determine it, because a custom step knows it.
        named: Whether the classes have names, so that their indices are no numbers of the user's.

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
        return Task(None, aligned(loss) if callable(loss) else DEFAULT_LOSSES[CLASSIFICATION])
    try:
        kind, reason = _kind_of_targets(targets, num_outputs, named)
    except DataError:
        if loss is None and not guess:
            raise
        return _task_with(loss, None, "The task is known only to the loss, so there are no default metrics.")
    return _task_with(loss, kind, f"{_named(loss, kind)}: {reason}", inferred=True)


def task_of_kind(loss: str | Loss | None, kind: str) -> Task:
    """Return a task of the given kind, with the custom loss if there is one."""
    return _task_with(loss, kind, f"{_named(loss, kind)}, as in training.")


def numbers_are_targets(
    loss: str | Loss | None, task: Task | None, num_outputs: int | None, *, custom: bool = False
) -> bool | None:
    """Return whether numbers as labels are the targets themselves (True) or name classes (False).

    None leaves it to the labels. A custom loss or step on a single output takes integers as numbers, because one output
    cannot tell several classes apart.
    """
    facts = _facts(loss)
    kind = facts.kind if facts is not None else task and task.kind
    if kind in (CLASSIFICATION, REGRESSION):
        return kind == REGRESSION
    return True if (custom or is_custom(loss)) and num_outputs == 1 else None


def has_several(loss: str | Loss | None, task: Task | None, num_outputs: int | None, classes: int) -> bool:
    """Return whether a sample has any number of classes: a 0 or 1 per class, of which there may be only one."""
    facts = _facts(loss)
    kind = task.kind if task is not None else None
    if kind is None and facts is not None:
        kind = facts.kind or (MULTILABEL if (num_outputs or 1) > 1 else BINARY)
    return kind == MULTILABEL or (kind == BINARY and classes == 1)


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
        return Task(kind, DEFAULT_LOSSES[kind or CLASSIFICATION], why, inferred)
    facts = _facts(loss)
    ignored = option_of(loss, "ignore_index") if kind == CLASSIFICATION else None
    if facts is None:
        outputs = PROBABILITIES if kind in (BINARY, MULTILABEL) and takes_probabilities(loss) else LOGITS
        return Task(kind, aligned(loss), why, inferred, outputs, ignored)
    return Task(kind, typed(loss, kind), why, inferred, facts.outputs, ignored)


def _facts(loss: str | Loss | None) -> _Facts | None:
    """Return the facts about a loss that is named or comes from torch, or None.

    Raises:
        ArgumentError: If there is no loss of that name.
    """
    if isinstance(loss, str):
        return _NAMED[one_of("loss", loss, _NAMED, "a function of outputs and targets", elsewhere=_ELSEWHERE)]
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


def _kind_of_targets(targets: Tensor, num_outputs: int | None, named: bool) -> tuple[str, str]:
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
        if named:
            return CLASSIFICATION, f"the labels are names{outputs}."
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
    unknown = _may_be_unknown(targets)
    if unknown or not targets.is_floating_point():
        fixes = "If -1 marks unknown labels, pass a loss that masks them. " if unknown else ""
        if int(targets.min()) >= 0 and int(targets.max()) < (num_outputs or 0):
            fixes = "For one class per element, with outputs [N, C, T], pass loss='cross_entropy'. "
        raise DataError(
            f"The targets are rows of {targets.shape[1]} whole numbers from {int(targets.min())} to "
            f"{int(targets.max())}, which could mean several tasks. Expected zeros and ones for several labels per "
            f"sample, or floats for a regression. {fixes}For a regression on the numbers, pass loss='mse'."
        )
    sums = targets.sum(1)
    probabilities = bool(((targets >= 0) & (targets <= 1)).all()) and bool(torch.isclose(sums, torch.ones(())).all())
    if probabilities and targets.shape[1] == num_outputs:
        other = "Pass loss='mse' for a regression."
        return CLASSIFICATION, f"each target is a row of probabilities that sum to 1. {other}"
    return REGRESSION, "each target is a row of decimal numbers. Pass loss='bce' for probabilities of several labels."


def _may_be_unknown(targets: Tensor) -> bool:
    """Return whether targets are -1, 0 and 1, where -1 may mark unknown labels or be one of two classes."""
    return bool((targets == -1).any()) and bool(((targets == -1) | (targets == 0) | (targets == 1)).all())


def _kind_of_floats(targets: Tensor, num_outputs: int | None, zeros_and_ones: bool) -> tuple[str, str]:
    if num_outputs == 1 and zeros_and_ones:
        return BINARY, "the targets are 0 and 1 and the model has one output. Pass loss='mse' for a regression."
    elementwise = targets.dim() > 2
    if num_outputs in (None, 1) and not elementwise and _may_be_unknown(targets):
        raise DataError(
            "The targets are -1, 0 or 1, which could mean several tasks. For two classes, pass 0 and 1: (y > 0). If -1 "
            "marks unknown labels, pass a loss that masks them. For a regression on the numbers, pass loss='mse'."
        )
    if num_outputs in (None, 1) or elementwise:
        return REGRESSION, "the targets are decimal numbers. Pass loss='bce' for probabilities."
    whole = bool((targets == targets.round()).all())
    classes = "For classes, pass whole numbers: y.long(). " if whole else ""
    raise DataError(
        f"The targets are decimal numbers, one per sample, which mean regression, but the model has {num_outputs} "
        f"outputs. {classes}For a regression, give the model one output with replace_head(1)."
    )
