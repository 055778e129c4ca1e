"""What is done to the batches that train: pictures mixed, classes weighed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.preprocessing.augmentations import mixing
from finetune.data.sources.base import join_batch, split_batch
from finetune.errors import ArgumentError
from finetune.training.callbacks.base import Callback
from finetune.training.run import Run
from finetune.training.tasks import CLASSIFICATION


class Mixup(Callback):
    """Train on mixtures of two pictures and of their labels (mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899).

    The loss gets probabilities [N, C] as targets; the training metrics take the likelier of the two labels. Data to
    evaluate is never mixed. A frozen prefix is not stored of training data, as mixtures are new in every epoch.

    Args:
        alpha: of mixup, which adds two pictures; the larger, the more evenly. 0 for none.
        cutmix: of CutMix, which pastes a rectangle of one into the other. 0 for none. Where both are above 0,
            each batch gets one of them by chance.

    Raises:
        ArgumentError: both are 0, or one is below; before training, if the task is not classification.
    """

    def __init__(self, alpha: float = 0.2, cutmix: float = 0.0) -> None:
        if min(alpha, cutmix) < 0 or alpha == cutmix == 0:
            raise ArgumentError(
                f"Expected alpha and cutmix to be 0 or above, and not both 0, but got {alpha!r} and {cutmix!r}."
            )
        self.alpha = alpha
        self.cutmix = cutmix
        self._mix: Any = None

    def on_fit_begin(self, run: Run) -> None:
        self._mix = mixing(self.alpha, self.cutmix, _number_of_classes(run, "Mixup"))

    def change_batch(self, run: Run, batch: Any) -> Any:
        pictures, targets = split_batch(batch)
        if not isinstance(pictures, Tensor) or pictures.dim() != 4:
            raise ArgumentError(
                "Mixup mixes batches of pictures [N, C, H, W] with labels, and these are others. Leave it out, or mix "
                "them in a training_step of your own."
            )
        return join_batch(batch, *self._mix(pictures, _indices(targets)))


class ClassWeights(Callback):
    """Let the classes count differently in the training loss, so that a rare one is not passed over.

    The mean of the samples' losses is taken, each times the weight of its class, for any batch size. The loss gets
    the weights as targets [N, C] in the place of labels, as cross-entropy takes probabilities. Validation losses stay
    unweighted.

    Args:
        weights: `"balanced"` for N / (C * n) for a class with n of the N training samples, or a weight a class.

    Raises:
        ArgumentError: before training, if the task is not classification, or the weights are not one a class.
    """

    changes_inputs = False

    def __init__(self, weights: str | Sequence[float] = "balanced") -> None:
        if isinstance(weights, str) and weights != "balanced":
            raise ArgumentError(f"Expected weights to be 'balanced' or a number for each class, but got {weights!r}.")
        self.weights = weights
        self._by_class = torch.empty(0)

    def on_fit_begin(self, run: Run) -> None:
        classes = _number_of_classes(run, "ClassWeights")
        weights = _balanced(run, classes) if isinstance(self.weights, str) else torch.tensor(self.weights).float()
        if weights.shape != (classes,):
            raise ArgumentError(f"ClassWeights has {len(weights)} weights, but the model {classes} classes.")
        self._by_class = weights.to(run.train.device)

    def change_batch(self, run: Run, batch: Any) -> Any:
        inputs, targets = split_batch(batch)
        soft = targets.is_floating_point() and targets.dim() == 2
        shares = targets if soft else F.one_hot(_indices(targets), len(self._by_class))
        return join_batch(batch, inputs, shares * self._by_class)


def _number_of_classes(run: Run, name: str) -> int:
    if run.task.kind != CLASSIFICATION or run.num_outputs is None:
        raise ArgumentError(
            f"{name} is for classification by a model with an output a class, and this is "
            f"{run.task.kind or 'a task that only your own loss knows'}. Leave it out."
        )
    return run.num_outputs


def _indices(targets: Tensor) -> Tensor:
    """Return class indices [N] as int64, and probabilities [N, C] as they are."""
    if targets.is_floating_point():
        return targets
    return (targets.flatten() if targets.dim() == 2 and targets.shape[1] == 1 else targets).long()


def _balanced(run: Run, classes: int) -> Tensor:
    targets = run.train.source.targets
    if targets is None:
        raise ArgumentError(
            "ClassWeights('balanced') counts the labels, and those of this data are known only as it is read. Give a "
            "weight for each class, as ClassWeights([1.0, 5.0])."
        )
    counts = torch.bincount(targets.flatten().long().cpu(), minlength=classes).float()
    present = counts > 0
    return torch.where(present, len(targets) / (present.sum() * counts.clamp(min=1)), torch.zeros(()))
