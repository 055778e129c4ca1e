"""`Judged`: predictions beside their targets, with the answer, the loss and the surety of every sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import DataError
from finetune.interpret.predictions import Predictions
from finetune.interpret.rows import JudgedSample, Rows
from finetune.training.tasks import class_indices

_SHOWN_CLASSES = 5


@dataclass(frozen=True, eq=False)
class OperatingPoints:
    """Right and wrong positives of a label by threshold. Their number is at most about twice that of the samples of it.

    Thresholds are left out between which the right positives stay the same: a curve is straight there.

    Attributes:
        thresholds: Float64 [P], falling.
        right: Number of samples with the label at or above each threshold, float64 [P].
        wrong: Number of samples without it, float64 [P].
    """

    thresholds: Tensor
    right: Tensor
    wrong: Tensor

    @classmethod
    def of(cls, scores: Tensor, present: Tensor) -> OperatingPoints:
        """Count the positives.

        Args:
            scores: Float64 [N].
            present: Whether each sample has the label, bool [N].

        Example:
            >>> points = OperatingPoints.of(torch.tensor([0.9, 0.8, 0.8, 0.1]), torch.tensor([True, True, False, True]))
            >>> points.right, points.wrong
            (tensor([1., 2., 3.], dtype=torch.float64), tensor([0., 1., 1.], dtype=torch.float64))
        """
        scores, order = scores.sort(descending=True)
        ends = torch.cat([(scores[1:] != scores[:-1]).nonzero()[:, 0], torch.tensor([len(scores) - 1])])
        right = present[order].double().cumsum(0)[ends]
        rises = torch.cat([right[:1] > 0, right[1:] != right[:-1], torch.tensor([True])])
        kept = rises[:-1] | rises[1:]
        return cls(scores[ends][kept], right[kept], (ends + 1 - right)[kept])


class Judged:
    """Predictions beside the targets that the loss counts. Everything is computed when it is first asked for.

    Args:
        predictions: Predictions with targets.

    Attributes:
        predictions: All predictions.
        kind: Kind of task.
        labels: Name of each score.
        places: Number of each sample in the data, int64 [N].
        scores: Probability of each class or label, two for a binary task, or value of each output, float32 [N, K].
        targets: Class indices int64 [N], for a multi-label task zeros and ones int64 [N, K], or values float32 [N, K].

    Raises:
        ArgumentError: If the outputs have no meaning, or no one answer per sample.
        DataError: If the targets do not match the outputs, or the loss counts none of them.
        NonFiniteError: If an output is NaN.
    """

    def __init__(self, predictions: Predictions) -> None:
        assert predictions.targets is not None
        self.predictions = predictions
        self.kind, self.labels = str(predictions.task.kind), predictions.labels
        outputs, targets = predictions.outputs, predictions.targets
        counted = predictions.task.counted(targets)
        self.places = torch.arange(len(outputs)) if counted is None else counted.reshape(len(outputs)).nonzero()[:, 0]
        if not len(self.places):
            raise DataError("There is no sample to interpret: the loss ignores every target.")
        self.scores, self._outputs = predictions.scores[self.places], outputs[self.places]
        self._given = targets[self.places]
        self.targets = self._targets()

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def answers(self) -> Tensor:
        """Answer to each sample, in the form of the targets, by the thresholds of the calibration."""
        if self.kind == CLASSIFICATION:
            return self.scores.argmax(1)
        if self.kind == REGRESSION:
            return self.scores
        chances = self.scores[:, 1:] if self.kind == BINARY else self.scores
        above = (chances.double() >= torch.tensor(self.thresholds, dtype=torch.float64)).long()
        return above[:, 0] if self.kind == BINARY else above

    @cached_property
    def thresholds(self) -> list[float]:
        """Probability from which a label holds, one for a binary task, where it is that of the second class."""
        return self.predictions.calibration.thresholds_for(1 if self.kind == BINARY else len(self.labels))

    @cached_property
    def right(self) -> Tensor:
        """Whether each answer is right, with all of its labels, bool [N]."""
        return (self.answers == self.targets).reshape(len(self), -1).all(1)

    @cached_property
    def losses(self) -> Tensor:
        """Loss of each sample, float64 [N]: the cross-entropy, its mean over labels, or the mean squared error."""
        if self.kind == REGRESSION:
            return (self.scores.double() - self.targets.double()).square().mean(1)
        if self.kind != CLASSIFICATION:
            return self._binary_losses(self._given.reshape(self._outputs.shape)).mean(1)
        soft = self._given.is_floating_point() and self._given.shape == self._outputs.shape
        logits, targets = self._logits(), self._given.double() if soft else self.targets
        return F.cross_entropy(logits, targets, reduction="none")

    @cached_property
    def relative_errors(self) -> Tensor:
        """Errors of a regression over the standard deviation of the targets of each output, float64 [N, K].

        Those of an output whose targets are all equal are relative to its own typical error.
        """
        errors, targets = self.scores.double() - self.targets.double(), self.targets.double()
        spread = targets.std(0, correction=0)
        spread = torch.where(spread > 0, spread, errors.square().mean(0).sqrt())
        return errors / torch.where(spread > 0, spread, 1)

    @cached_property
    def ranks(self) -> Tensor:
        """Number of classes before the true one, the likeliest first and of equal ones the first class, int64 [N].

        They are compared by their logits, which differ where small probabilities are all 0.
        """
        logits = self._logits()
        own = logits.gather(1, self.targets[:, None])
        earlier = torch.arange(logits.shape[1]) < self.targets[:, None]
        return ((logits > own) | ((logits == own) & earlier)).sum(1)

    @cached_property
    def surety(self) -> Tensor:
        """Logarithm of the probability of each answer, float64 [N], which tells apart probabilities close to 1."""
        if self.kind == CLASSIFICATION:
            return -F.cross_entropy(self._logits(), self.answers, reduction="none")
        return -self._binary_losses(self.answers.reshape(self._outputs.shape)).sum(1)

    @cached_property
    def operating_points(self) -> dict[str, OperatingPoints]:
        """Right and wrong positives of each label by threshold, of two classes those of the second."""
        alone = self.kind != MULTILABEL and len(self.labels) == 2
        return {
            name: OperatingPoints.of(self.scores[:, label].double(), self._present(label))
            for label, name in list(enumerate(self.labels))[int(alone) :]
        }

    def _present(self, label: int) -> Tensor:
        return self.targets[:, label].bool() if self.kind == MULTILABEL else self.targets == label

    def mistakes(self, n: int) -> Rows[JudgedSample]:
        """Return the wrong answers of the highest loss, the worst first, or the largest relative errors."""
        if self.kind == REGRESSION:
            return self._first(torch.arange(len(self)), self.relative_errors.square().mean(1), n)
        return self._first((~self.right).nonzero()[:, 0], self.losses, n)

    def surest(self, n: int) -> Rows[JudgedSample]:
        """Return the right answers of the highest probability, the surest first."""
        return self._first(self.right.nonzero()[:, 0], self.surety, n)

    def doubtful(self, index: int) -> str | None:
        """Return the label of an answer that most needs an explanation, None for the likeliest.

        It is the answer itself, the likeliest label that the sample does not have, or the output with the largest
        relative error.

        Args:
            index: Number of the sample in the data.
        """
        place = int((self.places == index).nonzero()[0, 0])
        if self.kind == REGRESSION:
            return self.labels[int(self.relative_errors[place].abs().argmax())]
        if self.kind != MULTILABEL:
            return self.labels[int(self.answers[place])]
        wrong = self.scores[place] * (self.answers[place] > self.targets[place])
        return self.labels[int(wrong.argmax())] if bool(wrong.any()) else None

    def _first(self, chosen: Tensor, values: Tensor, n: int) -> Rows[JudgedSample]:
        order = values[chosen].argsort(descending=True, stable=True)[:n]
        return Rows(map(self._sample, chosen[order].tolist()))

    def _sample(self, place: int) -> JudgedSample:
        index = int(self.places[place])
        return JudgedSample(
            self.predictions.name(index),
            index,
            true=self._words(self.targets[place]),
            answer=self._words(self.answers[place]),
            probabilities=self._likely(place),
            loss=float(self.losses[place]),
        )

    def _words(self, row: Tensor) -> Any:
        """Return a target or an answer by names."""
        if self.kind == REGRESSION:
            return dict(zip(self.labels, row.tolist(), strict=True))
        if self.kind == MULTILABEL:
            return tuple(self.labels[label] for label in row.nonzero()[:, 0])
        return self.labels[int(row)]

    def _likely(self, place: int) -> dict[str, float]:
        """Return the probabilities that matter for a sample, the highest first."""
        if self.kind == REGRESSION:
            return {}
        scores, true, answer = self.scores[place].tolist(), self.targets[place], self.answers[place]
        likely = sorted(range(len(scores)), key=lambda label: -scores[label])
        if self.kind == MULTILABEL:
            shown = [label for label in likely if true[label] or answer[label]]
        else:
            shown = [label for rank, label in enumerate(likely) if rank < _SHOWN_CLASSES or label == true]
        return {self.labels[label]: scores[label] for label in shown}

    def _targets(self) -> Tensor:
        if self.kind == CLASSIFICATION:
            return class_indices(self._given, self.scores).reshape(len(self))
        if self._given.numel() != self._outputs.numel():
            raise DataError(
                f"The model has outputs of shape {list(self._outputs.shape)}, but the targets have shape "
                f"{list(self._given.shape)}. Expected the same number of values per sample."
            )
        if self.kind == REGRESSION:
            return self._given.reshape(self.scores.shape).float()
        present = (self._given > 0.5).long()
        return present.reshape(len(self)) if self.kind == BINARY else present.reshape(self.scores.shape)

    def _logits(self) -> Tensor:
        task, calibration = self.predictions.task, self.predictions.calibration
        return calibration.logits(task, self._outputs.double())

    def _binary_losses(self, targets: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(self._logits(), targets.double(), reduction="none")
        return losses.reshape(len(self), -1)
