"""`Agreement`: how well the answers of a file agree with those of the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.export.subject import Subject


@dataclass(frozen=True)
class Agreement:
    """How well the answers of a file agree with those of the model.

    Attributes:
        samples: Number of samples that both answered.
        same: Number of samples with the same classes; None for a task without classes.
        difference: Largest difference of two probabilities; of values, as a fraction of the largest value if that is
            above 1.

    Example:
        >>> print(Agreement(samples=200, same=199, difference=0.0124))
        199 of 200 classes agree, largest difference 0.012
    """

    samples: int = 0
    same: int | None = None
    difference: float = 0.0

    @property
    def fraction(self) -> float:
        """Fraction of the samples with the same classes; 1 for a task without classes."""
        return 1.0 if self.same is None or not self.samples else self.same / self.samples

    def __str__(self) -> str:
        classes = "" if self.same is None else f"{self.same} of {self.samples} classes agree, "
        return f"{classes}largest difference {self.difference:.2g}"

    def with_batch(self, subject: Subject, expected: Tensor, found: Tensor) -> Agreement:
        """Return the agreement with the answers [N, ...] to another batch added."""
        if found.shape != expected.shape:
            return Agreement(self.samples + len(expected), self.same, float("inf"))
        expected, found = expected.double(), found.double()
        distance = (expected - found).abs()
        distance[(expected == found) | (expected.isnan() & found.isnan())] = 0.0
        scale = 1.0 if subject.answer == "probabilities" else max(1.0, float(expected.nan_to_num(0, 0, 0).abs().max()))
        largest = float(distance.nan_to_num(torch.inf, torch.inf, torch.inf).max() / scale)
        ours, theirs = subject.decisions(expected), subject.decisions(found)
        same = None
        if ours is not None and theirs is not None:
            same = (self.same or 0) + int((ours == theirs).reshape(len(ours), -1).all(1).sum())
        return Agreement(self.samples + len(expected), same, max(self.difference, largest))
