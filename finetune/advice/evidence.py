"""What was measured of a data set through a model: the numbers that advice rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.advice.features import Features
from finetune.advice.scores import best_penalty, h_score, knn_accuracy, log_me, probe_accuracies
from finetune.advice.spectrum import Spectrum, spectrum
from finetune.errors import DataError

_FOLDS = 5


@dataclass(frozen=True)
class Evidence:
    """The measurements; accuracies are shares from 0 to 1.

    Attributes:
        samples: how many the data has; None of a stream.
        measured: how many of them were looked at.
        class_sizes: samples of each class, among those looked at.
        h_score: of the features that the head reads, divided by C - 1, so that it is 1 where the classes' means
            explain them wholly. Between models on one data set; higher is better.
        log_me: LogME of these features. Between models on one data set; higher is better.
        knn: accuracy of the nearest neighbours among them.
        probe: accuracy of a linear probe on them, on folds that it was not trained on.
        spread: standard deviation of that over the folds.
        curve: accuracy of the probe by the number of samples it was trained on.
        probe_of_stages: as `probe`, on the features of all stages together: what earlier stages know that the last
            has lost is what training it could give back.
        probe_on_validation: of the probe trained on all, on the validation data; None without any.
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
        """How many classes the data has."""
        return len(self.class_sizes)

    @property
    def imbalance(self) -> float:
        """Samples of the largest class for each of the smallest."""
        return max(self.class_sizes) / min(self.class_sizes)

    @property
    def samples_per_class(self) -> float:
        """The mean over the classes, of all the data where its length is known."""
        return (self.samples or self.measured) / self.num_classes

    @property
    def nearness(self) -> float:
        """How far the probe is above chance: 0 if it only guesses, 1 if it is always right."""
        chance = 1 / self.num_classes
        return (self.probe - chance) / (1 - chance)

    @property
    def gain_from_doubling(self) -> float:
        """What twice the data added to the probe's accuracy."""
        return self.curve[-1][1] - self.curve[-2][1]


def measure(train: Features, val: Features | None = None, samples: int | None = None) -> Evidence:
    """Score the features of training data, and of validation data where there are any.

    Raises:
        DataError: there are fewer than two classes, or not two samples for each of them.
    """
    labels = train.labels
    sizes = tuple(labels.bincount()[labels.unique()].tolist()) if len(labels) else ()
    if len(sizes) < 2 or len(labels) < 2 * len(sizes):
        raise DataError(
            f"Advice needs at least two classes with two samples each, but got {len(labels)} samples of {len(sizes)} "
            f"classes. Give more data."
        )
    last = spectrum(train.last)
    folds = _folds(labels)
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
        DataError: they are not.
    """
    if targets is None or targets.is_floating_point() or targets.numel() != len(targets):
        got = "no labels" if targets is None else f"targets of shape {list(targets.shape)} and type {targets.dtype}"
        raise DataError(f"Advice is for classification, with a class index for each sample, but the data has {got}.")


def _folds(labels: Tensor) -> list[Tensor]:
    """Divide the samples into folds with a share of each class, neighbours in the data in the same one.

    Pictures taken in a row are often nearly the same; in different folds they would give each other away.
    """
    _, indices, sizes = labels.unique(return_inverse=True, return_counts=True)
    by_class = indices.argsort(stable=True)
    rank = torch.empty_like(indices)
    rank[by_class] = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[indices[by_class]]
    # Where classes are small, each begins at another fold, so that none is left empty.
    fold = (rank * _FOLDS // sizes[indices] + indices) % _FOLDS
    return [rows for number in range(_FOLDS) if len(rows := (fold == number).nonzero().flatten())]


def _curve(features: Spectrum, labels: Tensor, folds: Sequence[Tensor], penalty: float) -> list[tuple[int, float]]:
    """Return the probe's accuracy as trained on one and on two folds, and tested on all others."""
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
