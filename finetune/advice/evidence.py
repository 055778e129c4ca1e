"""`Evidence`: measurements of a dataset through a pretrained model, the basis of advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.advice.features import Features
from finetune.advice.scores import (
    Spectrum,
    best_penalty,
    h_score,
    knn_accuracy,
    log_me,
    probe_accuracies,
    spectrum,
)
from finetune.display.progress.waits import busy
from finetune.errors import DataError
from finetune.signals.stops import interruptible

_FOLDS = 5
_QUANTILE = 1.959964  # of the normal distribution, for an interval of 95 %


@dataclass(frozen=True)
class Evidence:
    """Measurements of a dataset. Accuracies range from 0 to 1.

    Attributes:
        samples: Number of samples in the data, or None for a stream.
        measured: Number of samples measured.
        class_sizes: Number of measured samples per class.
        h_score: H-score of the input features of the head, divided by C - 1, so that 1 means that the class means
            explain all their variance. Compares models on one dataset; higher is better.
        log_me: LogME of these features. Compares models on one dataset; higher is better.
        knn: Accuracy of a nearest-neighbor classifier on these features.
        probe: Cross-validated accuracy of a linear probe on these features.
        spread: Standard deviation of `probe` over the folds.
        curve: Pairs (number of training samples, accuracy of the probe).
        probe_of_stages: Cross-validated accuracy of a linear probe on the features of all stages. If it exceeds
            `probe`, earlier stages hold information that the last stage lost and that training may recover.
        probe_on_validation: Accuracy of the probe on the validation data, or None without validation data.

    Example:
        >>> from finetune import FineTuner
        >>> evidence = FineTuner("resnet18").advise("dogs/train", "dogs/val").evidence
        >>> evidence.num_classes, evidence.imbalance
        (3, 1.0)
        >>> 0 <= evidence.probe <= 1
        True
    """

    samples: int | None
    measured: int
    class_sizes: tuple[int, ...]
    h_score: float
    log_me: float
    knn: float
    probe: float
    spread: float
    curve: tuple[tuple[int, float], ...]
    probe_of_stages: float
    probe_on_validation: float | None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_sizes)

    @property
    def imbalance(self) -> float:
        """Ratio of the largest class to the smallest."""
        return max(self.class_sizes) / min(self.class_sizes)

    @property
    def samples_per_class(self) -> float:
        """Mean number of samples per class, in the whole data if its length is known."""
        return (self.samples or self.measured) / self.num_classes

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of `probe` for the number of measured samples (Wilson score interval)."""
        samples, z = self.measured, _QUANTILE
        center = (self.probe + z * z / (2 * samples)) / (1 + z * z / samples)
        variance = self.probe * (1 - self.probe) / samples + z * z / (4 * samples**2)
        half = z * math.sqrt(max(0.0, variance)) / (1 + z * z / samples)
        return max(0.0, center - half), min(1.0, center + half)

    @property
    def nearness(self) -> float:
        """Accuracy of the probe above chance: 0 for guessing, 1 for no errors."""
        return self.above_chance(self.probe)

    def above_chance(self, accuracy: float) -> float:
        """Return an accuracy on a scale on which guessing is 0 and no errors is 1.

        Example:
            >>> Evidence(90, 90, (45, 45), 0, 0, 0, 0.9, 0, (), 0, None).above_chance(0.75)
            0.5
        """
        chance = 1 / self.num_classes
        return (accuracy - chance) / (1 - chance)

    @property
    def gain_from_doubling(self) -> float:
        """Gain in accuracy of the probe when its training data doubled."""
        return self.curve[-1][1] - self.curve[-2][1]


@interruptible()
@busy("Scoring the features")
def measure(train: Features, val: Features | None = None, samples: int | None = None) -> Evidence:
    """Score the features of the training data and, if given, of the validation data.

    Args:
        train: Features of the training data.
        val: Features of the validation data, or None.
        samples: Number of samples in the training data, or None for a stream.

    Raises:
        DataError: If there are fewer than two classes, or fewer than two samples per class.
    """
    labels = train.labels
    sizes = tuple(labels.bincount()[labels.unique()].tolist()) if len(labels) else ()
    if len(sizes) < 2 or len(labels) < 2 * len(sizes):
        raise DataError(
            f"Advice requires at least two classes with two samples each, but got {len(labels)} samples of "
            f"{len(sizes)} classes. Pass more data."
        )
    last = spectrum(train.last)
    folds = folds_of(labels)
    penalty = best_penalty(last, labels, folds)
    accuracies = torch.tensor(probe_accuracies(last, labels, folds, penalty))
    whole = spectrum(train.last, *train.stages.values())
    of_stages = probe_accuracies(whole, labels, folds, best_penalty(whole, labels, folds))
    return Evidence(
        samples=samples,
        measured=len(labels),
        class_sizes=sizes,
        h_score=h_score(last, labels) / (len(sizes) - 1),
        log_me=log_me(last, labels),
        knn=knn_accuracy(train.last, labels),
        probe=float(accuracies.mean()),
        spread=float(accuracies.std()),
        curve=(*_curve(last, labels, folds, penalty), (len(labels) - len(labels) // _FOLDS, float(accuracies.mean()))),
        probe_of_stages=sum(of_stages) / len(of_stages),
        probe_on_validation=None if val is None else _on_validation(train, val, penalty),
    )


def check_classes(targets: Tensor | None) -> None:
    """Check that targets are class indices [N] or [N, 1].

    Raises:
        DataError: If the targets are missing or not class indices.
    """
    if targets is None or targets.is_floating_point() or targets.numel() != len(targets):
        got = "no labels" if targets is None else f"targets of shape {list(targets.shape)} and type {targets.dtype}"
        raise DataError(f"Advice is for classification. Expected one class index per sample, but the data has {got}.")


def folds_of(labels: Tensor) -> list[Tensor]:
    """Split the samples into folds, stratified by class, with consecutive samples in the same fold.

    Images taken in a row are often near-duplicates, which would leak between folds.
    """
    _, indices, sizes = labels.unique(return_inverse=True, return_counts=True)
    by_class = indices.argsort(stable=True)
    rank = torch.empty_like(indices)
    rank[by_class] = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[indices[by_class]]
    # Small classes start at different folds, so that no fold stays empty.
    fold = (rank * _FOLDS // sizes[indices] + indices) % _FOLDS
    return [rows for number in range(_FOLDS) if len(rows := (fold == number).nonzero().flatten())]


def _curve(features: Spectrum, labels: Tensor, folds: Sequence[Tensor], penalty: float) -> list[tuple[int, float]]:
    """Return the accuracy of the probe trained on one and on two folds and tested on the others."""
    everything = torch.arange(len(labels))
    points = []
    for count in (1, 2):
        trained = [torch.cat([folds[(first + k) % len(folds)] for k in range(count)]) for first in range(len(folds))]
        tested = [everything[~torch.isin(everything, rows)] for rows in trained]
        accuracies = probe_accuracies(features, labels, tested, penalty)
        points.append((sum(map(len, trained)) // len(trained), sum(accuracies) / len(accuracies)))
    return points


def _on_validation(train: Features, val: Features, penalty: float) -> float:
    both = spectrum(torch.cat([train.last, val.last]))
    rows = torch.arange(len(train), len(train) + len(val))
    return probe_accuracies(both, torch.cat([train.labels, val.labels]), [rows], penalty)[0]
