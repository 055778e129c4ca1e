"""Class weights for imbalanced data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.batch import join_batch, split_batch
from finetune.errors import ArgumentError, number
from finetune.naming.unicode import normalized
from finetune.training.callbacks.base import Callback
from finetune.training.run import Run
from finetune.training.tasks import Task, as_labels, number_of_classes, option_of


class ClassWeights(Callback):
    """Weight the training loss by class, so that rare classes count.

    The loss of a batch is the plain mean over its samples of weight times loss, so it does not depend on the batch
    size. The loss function gets the weights through targets [N, C], which cross-entropy accepts as probabilities, also
    with label smoothing. Samples that the loss ignores do not count. The validation loss stays unweighted, and the
    metrics too.

    Args:
        weights: One weight per class, also as a mapping from class name or index; or `"balanced"` for N / (C * n),
            where n of the N training samples belong to the class.

    Raises:
        ArgumentError: At the start of `fit`, if the task is not classification, there is not one weight from 0 on for
            each class, or the loss takes no weights through its targets.

    Example:
        >>> from finetune import FineTuner
        >>> data = torch.randn(20, 4), (torch.arange(20) == 0).long()
        >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
        >>> history = tuner.fit(data, callbacks=[ClassWeights("balanced")])
    """

    changes_inputs = False

    def __init__(self, weights: str | Sequence[float] | Mapping[Any, float] = "balanced") -> None:
        several = isinstance(weights, (Mapping, Sequence, Tensor, np.ndarray))
        if not several or (isinstance(weights, str) and weights != "balanced"):
            raise ArgumentError(f"Expected weights to be 'balanced' or one number per class, but got {weights!r}.")
        self.weights = weights
        self._by_class = torch.empty(0)
        self._task = Task(None, F.cross_entropy)
        self._smoothing = 0.0

    def on_fit_begin(self, run: Run) -> None:
        classes = number_of_classes(run.task, run.num_outputs, "ClassWeights")
        balanced = isinstance(self.weights, str)
        weights = _balanced(run, classes) if balanced else _by_class(self.weights, run.train.source.classes, classes)
        self._by_class = weights.to(run.train.device)
        self._task, self._smoothing = run.task, option_of(run.task.loss, "label_smoothing") or 0.0
        if not run.custom and not self._weights_loss():
            raise ArgumentError(
                "ClassWeights puts the weights into targets [N, C], which this loss does not take as probabilities. "
                "Remove the callback, and give the weights to the loss itself."
            )

    def weigh_batch(self, run: Run, batch: Any) -> Any:
        inputs, targets = split_batch(batch)
        return join_batch(batch, inputs, self._weighted(targets))

    def _weighted(self, targets: Tensor) -> Tensor:
        """Return targets [N, C, ...] at which the loss is the plain mean of weight times loss.

        The loss smooths the targets t to (1 - s) t + s / C. Those returned become what each class's smoothed target,
        times its weight, adds up to.
        """
        classes, s = len(self._by_class), self._smoothing
        weights = self._by_class.reshape(-1, *[1] * max(0, targets.dim() - (1 if _are_labels(targets) else 2)))
        shares = targets
        if _are_labels(targets):
            labels = as_labels(targets)
            counted = self._task.counted(labels)
            if counted is None:
                shares = F.one_hot(labels, classes).movedim(-1, 1)
            else:
                rise = counted.numel() / counted.sum().clamp(min=1)  # the mean is one over the samples that count
                shares = F.one_hot(labels.where(counted, 0), classes).movedim(-1, 1) * (counted * rise).unsqueeze(1)
        weighted = shares * weights
        return weighted + s / classes * (weighted.sum(1, keepdim=True) - 1) / (1 - s) if s else weighted

    def _weights_loss(self) -> bool:
        """Return whether the loss is weighted as documented. A loss of another form than [N, C] cannot be tried."""
        labels = torch.arange(len(self._by_class), device=self._by_class.device)
        outputs = torch.cos(torch.arange(float(len(labels) ** 2), device=labels.device)).reshape(len(labels), -1)
        loss = self._task.loss
        try:
            losses = torch.stack([loss(outputs[i : i + 1], labels[i : i + 1]) for i in range(len(labels))])
        except Exception:
            return True
        try:
            found = loss(outputs, self._weighted(labels))
        except Exception:
            return False
        return torch.allclose(found, (losses * self._by_class).mean(), rtol=1e-3) or _rescales(loss)


def _are_labels(targets: Tensor) -> bool:
    return not targets.is_floating_point()


def _rescales(loss: Any) -> bool:
    """Return whether the loss has its own class weights. Its mean over class indices is divided by their sum."""
    return option_of(loss, "weight") is not None


def _by_class(weights: Any, names: Sequence[str] | None, classes: int) -> Tensor:
    """Return one weight per class, from a sequence or from a mapping of class names or indices."""
    if isinstance(weights, Mapping):
        weights = {normalized(key) if isinstance(key, str) else key: weight for key, weight in weights.items()}
        names = None if names is None else [normalized(name) for name in names]
        order = next((keys for keys in (names, range(classes)) if keys and weights.keys() == {*keys}), None)
        if order is None:
            raise ArgumentError(
                f"Expected ClassWeights to have a weight for each of {', '.join(map(str, names or range(classes)))}, "
                f"but got {', '.join(map(repr, weights))}."
            )
        weights = [weights[key] for key in order]
    given = weights.tolist() if hasattr(weights, "tolist") else weights
    if not isinstance(given, Sequence) or len(given) != classes:
        many = len(given) if isinstance(given, Sequence) else 1
        raise ArgumentError(
            f"ClassWeights has {many} weights, but the model has {classes} classes. Pass one per class."
        )
    plain = [number("each of the class weights", weight, at_least=0) for weight in given]
    if not any(plain):
        raise ArgumentError(f"Expected ClassWeights to have a weight above 0, but got {plain}, which train nothing.")
    return torch.tensor(plain)


def _balanced(run: Run, classes: int) -> Tensor:
    source = run.train.source
    read = source.sampled_targets  # of all samples, unless there are more than the audit reads
    complete = read is not None and source.indexed and len(read) == len(source)
    targets = read if source.targets is None and complete else source.targets
    if targets is None:
        raise ArgumentError(
            "ClassWeights('balanced') counts the labels in advance, but the labels of this data are unknown until it "
            "is read. Pass one weight per class instead, as in ClassWeights([1.0, 5.0])."
        )
    labels = targets.long().cpu()
    counted = run.task.counted(labels)
    labels = labels.flatten() if counted is None else labels[counted]
    counts = torch.bincount(labels, minlength=classes).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), torch.zeros(()))
