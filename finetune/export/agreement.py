"""`Agreement`: how well the answers of a file agree with those of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.data.targets import CLASSIFICATION, MULTILABEL
from finetune.export.subject import Subject
from finetune.interpret.calibration import DEFAULT_THRESHOLD
from finetune.training.tasks import class_indices


@dataclass(frozen=True)
class Agreement:
    """How well the answers of a file agree with those of the model.

    Attributes:
        samples: Number of samples that both answered.
        same: Number of samples with the same classes; None for a task without classes.
        difference: Largest difference of two probabilities; of values, as a fraction of the largest value if that is
            above 1.
        labeled: Number of labeled samples, or of labeled elements of maps; 0 for data without labels.
        right: Number of them that the file answers right, with all labels of a sample, by the thresholds of `classify`.
        right_before: The same of the model.

    Example:
        >>> print(Agreement(samples=200, same=199, difference=0.0124))
        199 of 200 classes agree, largest difference 0.012
    """

    samples: int = 0
    same: int | None = None
    difference: float = 0.0
    labeled: int = 0
    right: int = 0
    right_before: int = 0

    @property
    def accuracy(self) -> str | None:
        """Accuracy of the file beside that of the model, in words; None for data without labels.

        Example:
            >>> Agreement(labeled=200, right=180, right_before=183).accuracy
            '90.00%, of the model 91.50% (1.50 points lost)'
        """
        if not self.labeled:
            return None
        file, model = 100 * self.right / self.labeled, 100 * self.right_before / self.labeled
        lost = f"{abs(model - file):.2f} points {'gained' if file > model else 'lost'}"
        return f"{file:.2f}%, of the model {model:.2f}% ({lost})"

    @property
    def fraction(self) -> float:
        """Fraction of the samples with the same classes; 1 for a task without classes."""
        return 1.0 if self.same is None or not self.samples else self.same / self.samples

    def __str__(self) -> str:
        classes = "" if self.same is None else f"{self.same} of {self.samples} classes agree, "
        return f"{classes}largest difference {self.difference:.2g}"

    def with_batch(self, subject: Subject, expected: Tensor, found: Tensor, targets: Tensor | None = None) -> Agreement:
        """Return the agreement with the answers [N, ...] to another batch added.

        Args:
            subject: The model.
            expected: Answers of the model.
            found: Answers of the file.
            targets: Targets of the samples, or None for samples without labels.
        """
        samples = self.samples + len(expected)
        if found.shape != expected.shape:
            return replace(self, samples=samples, difference=float("inf"))
        expected, found = expected.double(), found.double()
        distance = (expected - found).abs()
        distance[(expected == found) | (expected.isnan() & found.isnan())] = 0.0
        scale = 1.0 if subject.answer == "probabilities" else max(1.0, float(expected.nan_to_num(0, 0, 0).abs().max()))
        largest = float(distance.nan_to_num(torch.inf, torch.inf, torch.inf).max() / scale)
        added = replace(self, samples=samples, difference=max(self.difference, largest))
        ours, theirs = subject.decisions(expected), subject.decisions(found)
        if ours is None or theirs is None:
            return added
        same = int((ours == theirs).reshape(len(ours), -1).all(1).sum())
        added = replace(added, same=(self.same or 0) + same)
        return added if targets is None else added._with_labels(subject, expected, ours, theirs, targets)

    def _with_labels(
        self, subject: Subject, answers: Tensor, ours: Tensor, theirs: Tensor, targets: Tensor
    ) -> Agreement:
        """Return the agreement with the labels of a batch added, without those that the loss ignores."""
        task = subject.task
        classes = task.kind == CLASSIFICATION
        wanted = class_indices(targets, answers) if classes else targets.reshape(ours.shape) > DEFAULT_THRESHOLD
        counted = task.counted(targets)
        kept = slice(None) if counted is None else counted.reshape(wanted.shape)
        right, before = ((made == wanted)[kept] for made in (theirs, ours))
        if task.kind == MULTILABEL:
            right, before = right.all(1), before.all(1)
        return replace(
            self,
            labeled=self.labeled + right.numel(),
            right=self.right + int(right.sum()),
            right_before=self.right_before + int(before.sum()),
        )
