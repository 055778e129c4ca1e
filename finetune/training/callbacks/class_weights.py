"""Class weights for imbalanced data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.batch import join_batch, split_batch
from finetune.errors import ArgumentError
from finetune.training.callbacks.base import Callback
from finetune.training.run import Run
from finetune.training.tasks import as_labels, number_of_classes


class ClassWeights(Callback):
    """Weight the training loss by class, so that rare classes count.

    The loss of a batch is the plain mean over its samples of weight times loss, so it does not depend on the batch
    size. The loss function gets the weights through targets [N, C], which cross-entropy accepts as probabilities. The
    validation loss stays unweighted.

    Args:
        weights: One weight per class, or `"balanced"` for N / (C * n), where n of the N training samples belong to the
            class.

    Raises:
        ArgumentError: At the start of `fit`, if the task is not classification, or the number of weights is not the
            number of classes.

    Example:
        >>> from finetune import FineTuner
        >>> data = torch.randn(20, 4), (torch.arange(20) == 0).long()
        >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
        >>> history = tuner.fit(data, callbacks=[ClassWeights("balanced")])
    """

    changes_inputs = False

    def __init__(self, weights: str | Sequence[float] = "balanced") -> None:
        if isinstance(weights, str) and weights != "balanced":
            raise ArgumentError(f"Expected weights to be 'balanced' or one number per class, but got {weights!r}.")
        self.weights = weights
        self._by_class = torch.empty(0)

    def on_fit_begin(self, run: Run) -> None:
        classes = number_of_classes(run.task, run.num_outputs, "ClassWeights")
        weights = _balanced(run, classes) if isinstance(self.weights, str) else torch.tensor(self.weights).float()
        if weights.shape != (classes,):
            raise ArgumentError(
                f"ClassWeights has {len(weights)} weights, but the model has {classes} classes. Pass one per class."
            )
        self._by_class = weights.to(run.train.device)

    def change_batch(self, run: Run, batch: Any) -> Any:
        inputs, targets = split_batch(batch)
        soft = targets.is_floating_point() and targets.dim() == 2
        shares = targets if soft else F.one_hot(as_labels(targets), len(self._by_class))
        return join_batch(batch, inputs, shares * self._by_class)


def _balanced(run: Run, classes: int) -> Tensor:
    targets = run.train.source.targets
    if targets is None:
        raise ArgumentError(
            "ClassWeights('balanced') counts the labels in advance, but the labels of this data are unknown until it "
            "is read. Pass one weight per class instead, as in ClassWeights([1.0, 5.0])."
        )
    counts = torch.bincount(targets.flatten().long().cpu(), minlength=classes).float()
    present = counts > 0
    return torch.where(present, len(targets) / (present.sum() * counts.clamp(min=1)), torch.zeros(()))
