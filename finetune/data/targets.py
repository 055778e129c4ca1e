"""The kinds of task, and the targets that each accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.errors import DataError

CLASSIFICATION, BINARY, MULTILABEL, REGRESSION = "classification", "binary", "multilabel", "regression"

# Target that a cross-entropy leaves out by default. It is accepted in maps of labels, where borders have it.
IGNORED_IN_MAPS = -100


@dataclass(frozen=True)
class TargetRule:
    """The targets that a task accepts.

    Attributes:
        kind: Kind of task; None for an unknown custom loss, for which only NaN and infinity are errors.
        num_outputs: Number of outputs of the model, or None if unknown.
        ignored: Target that the loss leaves out, or None.
        soft: Whether probabilities may take the place of zeros and ones. False if the task was inferred from zeros
            and ones, so that any other value shows that the inference was wrong.
        as_tensors: Whether lists of labels in a batch become tensors. False for a custom step, which gets the batch as
            it is.

    Example:
        >>> rule = TargetRule("classification", num_outputs=3)
        >>> rule.check(torch.tensor([1, 2, 3]), lambda i: f"sample {i}")
        Traceback (most recent call last):
        finetune.errors.DataError: 1 of 3 labels is out of range; the first is that of sample 2: 3. ...
    """

    kind: str | None = None
    num_outputs: int | None = None
    ignored: int | None = None
    soft: bool = True
    as_tensors: bool = True

    def check(self, targets: Any, name: Callable[[int], str]) -> None:
        """Check targets [N, ...] on the CPU. Targets of another type or on a device are left to the loss.

        Args:
            targets: Targets of a batch or of a whole source.
            name: Function that names sample i in the error message.

        Raises:
            DataError: If the task does not accept a target.
        """
        if not isinstance(targets, Tensor) or targets.device.type != "cpu" or targets.dim() == 0 or not len(targets):
            return
        if targets.is_complex() and self.kind is not None:
            fix = "Expected real numbers. Pass y.real, or a loss for complex numbers."
            _raise_for(torch.ones_like(targets, dtype=torch.bool), targets, name, "target", "complex", fix)
        if targets.is_floating_point():
            _raise_for(~targets.isfinite(), targets, name, "target", "not finite", "Correct or remove these samples.")
        if self.kind == CLASSIFICATION:
            self._check_classes(targets, name)
        elif self.kind in (BINARY, MULTILABEL):
            self._check_zeros_and_ones(targets, name)

    def is_counted(self, targets: Tensor) -> Tensor:
        """Return bool [N, ...], False for targets that the loss ignores."""
        maps = targets.dim() > 1 and targets[0].numel() > 1
        ignored = IGNORED_IN_MAPS if self.ignored is None and maps else self.ignored
        return torch.ones_like(targets, dtype=torch.bool) if ignored is None else targets != ignored

    def _check_classes(self, targets: Tensor, name: Callable[[int], str]) -> None:
        """Check class indices [N, ...], or one row of probabilities [N, C] per sample."""
        classes = self.num_outputs
        if targets.is_floating_point() and targets.dim() == 2 and targets.shape[1] in (classes, None):
            outside = (targets < 0) | (targets > 1)
            _raise_for(outside, targets, name, "row", "not probabilities", "Expected values from 0 to 1.")
            return
        if targets.is_floating_point():
            fractions = (targets != targets.round()) & self.is_counted(targets)
            fix = "Class labels are whole numbers. To train on the numbers themselves, pass loss='mse'."
            _raise_for(fractions, targets, name, "label", "not a whole number", fix)
        if classes is None:
            return
        if targets.dim() == 2 and targets.shape[1] == classes > 2 and bool(((targets == 0) | (targets == 1)).all()):
            several = (targets.sum(1, keepdim=True) > 1) & targets.bool()
            fix = "Cross-entropy is for one class per sample. For several, pass loss='bce'."
            _raise_for(several, targets, name, "row", "of several classes", fix)
            return
        counted = self.is_counted(targets)
        outside = ((targets < 0) | (targets >= classes)) & counted
        if outside.any():
            expected = f"Expected 0 to {classes - 1}, because the model has {classes} outputs."
            fix = f"{expected} {_fix_for_labels(targets[counted], classes)}"
            _raise_for(outside, targets, name, "label", "out of range", fix)

    def _check_zeros_and_ones(self, targets: Tensor, name: Callable[[int], str]) -> None:
        soft = self.soft and targets.is_floating_point()
        outside = (targets < 0) | (targets > 1) if soft else (targets != 0) & (targets != 1)
        if outside.any():
            expected = "Expected values from 0 to 1." if soft else "Expected 0 or 1."
            fix = f"{expected} {_fix_for_zeros_and_ones(targets, rows=self.kind == MULTILABEL)}"
            _raise_for(outside, targets, name, "target", "neither 0 nor 1" if not soft else "out of range", fix)


def are_class_indices(targets: Tensor) -> bool:
    """Return whether targets are integers [N] or [N, 1]."""
    column = targets.dim() == 1 or (targets.dim() == 2 and targets.shape[1] == 1)
    return column and not targets.is_floating_point() and not targets.is_complex() and targets.dtype != torch.bool


def _raise_for(wrong: Tensor, targets: Tensor, name: Callable[[int], str], noun: str, problem: str, fix: str) -> None:
    """Raise a DataError with the number of wrong targets and the name of the first, if there are any."""
    if not wrong.any():
        return
    samples = wrong.reshape(len(wrong), -1).any(1)
    first, count = int(samples.nonzero()[0]), int(samples.sum())
    value = targets[first].tolist() if targets[first].numel() <= 20 else targets[first][wrong[first]][:5].tolist()
    raise DataError(
        f"{count} of {len(targets)} {noun}s {'is' if count == 1 else 'are'} {problem}; the first is that of "
        f"{name(first)}: {value}. {fix}"
    )


def _fix_for_labels(labels: Tensor, classes: int) -> str:
    """Return the likeliest fix for class labels that are out of range."""
    low, high = int(labels.min()), int(labels.max())
    if low == 1 and high == classes:
        return "The labels begin at 1. Subtract 1, so that they begin at 0."
    if low == -1 and {*labels.unique().tolist()} == {-1, 1}:
        return "The labels are -1 and 1. Pass 0 and 1: (y > 0)."
    fix = "Correct the labels." if low < 0 else f"Correct the labels, or call `replace_head({high + 1})`."
    outside = labels[(labels < 0) | (labels >= classes)].unique().tolist()
    if len(outside) > 1 or outside == [classes]:
        return fix
    mark = int(outside[0])
    return (
        f"{fix} If {mark} marks samples without a label, remove them or pass "
        f"loss=nn.CrossEntropyLoss(ignore_index={mark}). A custom loss that leaves it out says so by its attribute: "
        f"loss.ignore_index = {mark}."
    )


def _fix_for_zeros_and_ones(targets: Tensor, *, rows: bool) -> str:
    """Return the likeliest fix for the targets of a binary or multi-label task."""
    values = {*targets.unique()[:4].tolist()}
    if rows and are_class_indices(targets) and min(values) >= 0:
        return (
            "One number per sample is the index of a class. For a 0 or 1 per class, pass "
            "torch.nn.functional.one_hot(y, num_classes); for one class per sample, loss='cross_entropy'."
        )
    if values == {-1, 1}:
        return "The labels are -1 and 1. Pass 0 and 1: (y > 0)."
    if values == {1, 2}:
        return "The labels are 1 and 2. Subtract 1."
    if -1 in values and values <= {-1, 0, 1}:
        return (
            "If -1 marks unknown labels, pass a loss that leaves them out: a function of outputs and targets that "
            "masks them, with metrics=[]."
        )
    if rows and targets.is_floating_point() and bool((targets >= 0).all()) and _sum_to_one(targets):
        return "The rows sum to 1. For probabilities of the classes of each sample, pass loss='cross_entropy'."
    return "To train on the numbers themselves, pass loss='mse'."


def _sum_to_one(rows: Tensor) -> bool:
    sums = rows.sum(1)
    return bool(torch.isclose(sums, torch.ones_like(sums), atol=1e-3).all())
