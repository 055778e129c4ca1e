"""`Calibration`: a temperature that makes probabilities as sure as they are right, and a threshold per label."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.data.targets import CLASSIFICATION, REGRESSION
from finetune.display.numbers import fixed
from finetune.errors import ArgumentError, CheckpointError, is_number
from finetune.training.tasks import PROBABILITIES, Task

log = logging.getLogger("finetune")

DEFAULT_THRESHOLD = 0.5

_COLDEST, _HOTTEST = 0.05, 20.0
_HALVINGS = 60
_TINY = 1e-15


@dataclass(frozen=True)
class Calibration:
    """A temperature, and thresholds of a task whose labels are independent of each other.

    Attributes:
        temperature: Number that the logits are divided by (arXiv 1706.04599). Above 1, probabilities become less sure.
        thresholds: Probability above which each label holds; None for 0.5.

    Example:
        >>> from finetune.training.tasks import infer_task
        >>> task = infer_task("cross_entropy", None, num_outputs=2)
        >>> Calibration(temperature=2.0).probabilities(task, torch.tensor([[0.0, 2.0]]))
        tensor([[0.2689, 0.7311]])
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None

    @classmethod
    def fit(cls, task: Task, outputs: Tensor, targets: Tensor) -> Calibration:
        """Fit a calibration to data that the model was not trained on.

        Args:
            task: The task.
            outputs: Outputs of the model [N, C].
            targets: Targets, class indices [N], or zeros and ones [N] or [N, C].

        Raises:
            ArgumentError: If the outputs of the task have no probabilities.
        """
        check_probabilities(task)
        outputs, targets = as_rows(task, outputs, targets)
        logits = _logits(task, outputs).double()
        temperature = _temperature(logits, _in_rows(task, logits, targets), exclusive=task.kind == CLASSIFICATION)
        fitted = cls(temperature)
        if task.kind == CLASSIFICATION:
            return fitted
        probabilities = fitted.probabilities(task, outputs)
        columns = zip(probabilities.T, targets.reshape(probabilities.shape).T, strict=True)
        return cls(temperature, tuple(best_threshold(column, labels) for column, labels in columns))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Calibration:
        """Return the calibration of a checkpoint.

        Raises:
            CheckpointError: If its values are none of a calibration.
        """
        temperature, thresholds = saved["temperature"], saved["thresholds"]
        numbers = [temperature, *(thresholds or [])]
        if not all(is_number(number) and 0 <= number < math.inf for number in numbers) or temperature == 0:
            raise CheckpointError(f"Expected a temperature and thresholds as a calibration, but got {numbers}.")
        return cls(float(temperature), None if thresholds is None else tuple(map(float, thresholds)))

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as plain values for a checkpoint."""
        return asdict(self)

    def probabilities(self, task: Task, outputs: Tensor) -> Tensor:
        """Return calibrated probabilities, of the shape of `outputs`.

        Raises:
            ArgumentError: If the outputs of the task have no probabilities.
        """
        check_probabilities(task)
        if self.temperature == 1:
            return task.probabilities(outputs)
        logits = self.logits(task, outputs)
        probabilities = logits.softmax(1) if task.kind == CLASSIFICATION else logits.sigmoid()
        return probabilities.to(outputs.dtype)

    def logits(self, task: Task, outputs: Tensor) -> Tensor:
        """Return outputs, of a task with probabilities, as logits at the temperature."""
        return _logits(task, outputs) / self.temperature

    def named_thresholds(self, classes: Sequence[str] | None) -> list[str]:
        """Return the thresholds as text, each after its class if the names are known; none without thresholds.

        Example:
            >>> Calibration(thresholds=(0.25,)).named_thresholds(("cat", "dog"))  # binary: of the second class
            ['dog 0.2500']
        """
        thresholds = list(map(fixed, self.thresholds or ()))
        if classes is None or not thresholds:
            return thresholds
        return [f"{name} {each}" for name, each in zip(classes[-len(thresholds) :], thresholds, strict=True)]

    def thresholds_for(self, count: int) -> list[float]:
        """Return the thresholds of `count` labels.

        Raises:
            ArgumentError: If the calibration has thresholds for another number of labels.
        """
        if self.thresholds is None:
            return [DEFAULT_THRESHOLD] * count
        if len(self.thresholds) != count:
            raise ArgumentError(
                f"The calibration has {len(self.thresholds)} thresholds, but the model has {count} labels. Call "
                f"calibrate again."
            )
        return list(self.thresholds)


def check_probabilities(task: Task) -> None:
    """Check that the outputs of a task can be converted to probabilities.

    Raises:
        ArgumentError: If they cannot.
    """
    if task.kind == REGRESSION:
        raise ArgumentError("A regression has no probabilities. Call predict or classify for its values.")
    if task.kind is None:
        raise ArgumentError(
            "The meaning of the outputs is unknown, so they have no probabilities. Train or evaluate the model, or "
            "name the classes of its outputs: tuner.classes = [...]. For the outputs themselves, call predict."
        )


def as_rows(task: Task, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs [M, C] and targets of the samples, or of the elements of maps, that the loss counts."""
    kept = task.counted(targets)
    if outputs.dim() < 2:
        outputs = outputs[:, None]
    elif outputs.dim() > 2 and task.kind == CLASSIFICATION:
        outputs, targets = outputs.movedim(1, -1).flatten(0, -2), targets.flatten()
    return (outputs, targets) if kept is None else (outputs[kept.flatten()], targets[kept.flatten()])


def best_threshold(probabilities: Tensor, labels: Tensor) -> float:
    """Return the threshold with the highest F1, halfway between two probabilities.

    Args:
        probabilities: float [N].
        labels: Zeros and ones [N]. Without any one, every threshold is as good, and 0.5 is returned.

    Example:
        >>> best_threshold(torch.tensor([0.125, 0.25, 0.5, 0.75]), torch.tensor([0, 0, 1, 1]))
        0.375
    """
    from torchmetrics.functional.classification import binary_precision_recall_curve

    positive = labels > DEFAULT_THRESHOLD
    if not positive.any():
        return DEFAULT_THRESHOLD
    precision, recall, thresholds = binary_precision_recall_curve(probabilities.double(), positive.long())
    f1 = (2 * precision * recall / (precision + recall)).nan_to_num()  # 0 where there is no hit
    lowest = thresholds[f1[: len(thresholds)].argmax()]
    below = probabilities.double()[probabilities < lowest]
    return float((lowest + below.max()) / 2) if len(below) else float(lowest) / 2


def _temperature(logits: Tensor, targets: Tensor, *, exclusive: bool) -> float:
    """Return the temperature with the lowest negative log-likelihood, which is convex in its inverse.

    Args:
        logits: float [N, C].
        targets: Probability of each class or label, float [N, C].
        exclusive: Whether a sample has one class.
    """

    def slope(inverse: float) -> float:
        scaled = inverse * logits
        gaps = (scaled.softmax(1) if exclusive else scaled.sigmoid()) - targets
        return float(torch.where(gaps == 0, 0, gaps * logits).sum(1).mean())  # a class ruled out has the logit -inf

    low, high = 1 / _HOTTEST, 1 / _COLDEST
    if slope(1.0) == 0:
        return 1.0
    if slope(low) >= 0 or slope(high) <= 0:
        bound = _HOTTEST if slope(low) >= 0 else _COLDEST
        log.warning(
            "The temperature reached its limit of %s: %s.",
            bound,
            "the model is hardly better than chance on this data" if bound == _HOTTEST else "it makes no error here",
        )
        return bound
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / math.sqrt(low * high)


def _logits(task: Task, outputs: Tensor) -> Tensor:
    if task.outputs != PROBABILITIES:
        return outputs
    exact = outputs.double()  # in which probabilities near 0 and 1 have finite logits
    return exact.clamp_min(_TINY).log() if task.kind == CLASSIFICATION else exact.logit(_TINY)


def _in_rows(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    if task.kind != CLASSIFICATION or (targets.is_floating_point() and targets.shape == logits.shape):
        return targets.reshape(logits.shape).double()
    return torch.nn.functional.one_hot(targets.reshape(-1).long(), logits.shape[1]).double()
