"""Likely wrong labels and classes that cannot be told apart, by a probe that has not seen the sample.

Confident learning (Northcutt et al., arXiv 1911.00068) finds suspects: samples for which the held-out probability of
another class exceeds the mean probability that samples of that class have for their own. The probe is fitted again
without them, because wrong labels spoil it. A label is likely wrong if the new probabilities speak clearly against it,
and the nearest neighbors, which need no probe, agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.advice.evidence import folds_of
from finetune.advice.scores import Spectrum, best_penalty, held_out, one_hot, spectrum

_CLEAR_MARGIN = -0.8  # normalized margin: probability of the label minus that of the likeliest other class
_CLEAR_VOTE = 0.3  # share of the neighbors by which the other class exceeds the label

_PENALTY_SAMPLES = 5_000  # by which the penalty of the probe is chosen
_POWERS = (-2.0, 6.0)  # logarithm of the factor of the scores, the inverse of a temperature

_ABOVE_CHANCE = 0.1  # of the accuracy, on a scale from 0 for guessing to 1, below which the probe says nothing

_SURE = 2.576  # quantile of the normal distribution, for an interval of 99 %
_FEWEST = 20  # samples of two classes that are compared
_ALIKE = 0.6  # accuracy of the probe below which two classes count as alike
_SURELY = 0.75  # accuracy that they surely do not reach


@dataclass(frozen=True)
class Probe:
    """Held-out probabilities of a linear probe.

    Attributes:
        first: Float64 [N, C], by a probe that was fitted to other samples.
        cleaned: Float64 [N, C], by one that was fitted to other samples without suspects.
    """

    first: Tensor
    cleaned: Tensor

    def beats_guessing(self, labels: Tensor) -> bool:
        """Return whether the probe is surely more accurate than the most frequent class."""
        accuracy = float((self.first.argmax(1) == labels).double().mean())
        error = _SURE * math.sqrt(accuracy * (1 - accuracy) / len(labels))
        chance = float(labels.bincount().max()) / len(labels)
        return accuracy - error > chance + _ABOVE_CHANCE * (1 - chance)


@dataclass(frozen=True)
class WrongLabel:
    """A sample whose label is likely wrong.

    Attributes:
        row: Number of the sample.
        suggested: The likeliest class.
        probability: Its probability.
        margin: Probability of the label minus that of the suggested class, from -1 to 1.
    """

    row: int
    suggested: int
    probability: float
    margin: float


@dataclass(frozen=True)
class ConfusablePair:
    """Two classes that the probe does not tell apart.

    Attributes:
        first: Index of a class.
        second: Index of the other.
        accuracy: Mean fraction of the samples of each that the probe assigns to the right one of the two.
        samples: Number of samples of both.
    """

    first: int
    second: int
    accuracy: float
    samples: int


def cleaned_probe(features: Tensor, labels: Tensor) -> Probe:
    """Fit a probe, and again without the samples whose labels it contradicts.

    Args:
        features: Float [N, D].
        labels: Class indices without gaps, int64 [N].
    """
    known, folds = spectrum(features), folds_of(labels)
    penalty = _penalty(known, features, labels, folds)
    everything = torch.ones(len(labels), dtype=torch.bool)
    first = _calibrated(_held_out(known, labels, folds, penalty, everything), labels, everything)
    kept = ~suspects(first, labels)
    cleaned = _calibrated(_held_out(known, labels, folds, penalty, kept), labels, kept)
    return Probe(first, cleaned)


def suspects(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return bool [N], True for the samples that confident learning counts as another class.

    Example:
        >>> suspects(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]]), torch.tensor([0, 0, 1, 1]))
        tensor([False, False, False, False])
        >>> suspects(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.1, 0.9]]), torch.tensor([0, 0, 1, 1]))
        tensor([False, False,  True, False])
    """
    own = probabilities.gather(1, labels[:, None])[:, 0]
    sizes = labels.bincount(minlength=probabilities.shape[1])
    thresholds = torch.zeros_like(probabilities[0]).scatter_add(0, labels, own) / sizes.clamp_min(1)
    confident = torch.where((probabilities >= thresholds) & (sizes > 0), probabilities, -1.0)
    best = confident.max(1)
    return (best.indices != labels) & (best.values > 0)


def wrong_labels(probe: Probe, labels: Tensor, neighbors: Tensor) -> list[WrongLabel]:
    """Return the samples whose labels are likely wrong, by their normalized margin, the surest first.

    Args:
        probe: Held-out probabilities of N samples.
        labels: Class indices, int64 [N].
        neighbors: Nearest other samples, int64 [N, K].
    """
    others = probe.cleaned.scatter(1, labels[:, None], -1.0).max(1)
    margins = probe.cleaned.gather(1, labels[:, None])[:, 0] - others.values
    votes = labels[neighbors]
    lead = (votes == others.indices[:, None]).double().mean(1) - (votes == labels[:, None]).double().mean(1)
    clear = (margins <= _CLEAR_MARGIN) & (lead >= _CLEAR_VOTE - 1e-9)
    rows = (clear & (probe.first.argmax(1) != labels)).nonzero().flatten()
    rows = rows[margins[rows].argsort(stable=True)]
    return [
        WrongLabel(row, int(others.indices[row]), float(others.values[row]), float(margins[row]))
        for row in rows.tolist()
    ]


def confusable_pairs(probabilities: Tensor, labels: Tensor) -> list[ConfusablePair]:
    """Return the pairs of classes that the probe tells apart about as often as chance does, the most alike first.

    Args:
        probabilities: Held-out probabilities, float [N, C].
        labels: Class indices, int64 [N].
    """
    classes = probabilities.shape[1]
    sizes = labels.bincount(minlength=classes)
    wins = torch.full((classes, classes), math.nan, dtype=torch.float64)
    for label in range(classes):
        own = probabilities[labels == label]
        if len(own):
            ties = (own == own[:, [label]]).double() / 2
            wins[label] = ((own < own[:, [label]]).double() + ties).mean(0)
    accuracies, counts = (wins + wins.T) / 2, sizes + sizes[:, None]
    alike = (accuracies < _ALIKE) & (counts >= _FEWEST) & (_highest(accuracies, counts) < _SURELY)
    pairs = [
        ConfusablePair(a, b, float(accuracies[a, b]), int(counts[a, b])) for a, b in alike.triu(1).nonzero().tolist()
    ]
    return sorted(pairs, key=lambda pair: pair.accuracy)


def _highest(accuracies: Tensor, counts: Tensor) -> Tensor:
    """Return the upper end of the confidence interval of accuracies."""
    return accuracies + _SURE * (accuracies * (1 - accuracies) / counts.clamp_min(1)).sqrt()


def _penalty(known: Spectrum, features: Tensor, labels: Tensor, folds: Sequence[Tensor]) -> float:
    if len(labels) <= _PENALTY_SAMPLES:
        return best_penalty(known, labels, folds)
    rows = torch.linspace(0, len(labels) - 1, _PENALTY_SAMPLES).long()
    _, few = labels[rows].unique(return_inverse=True)
    return best_penalty(spectrum(features[rows]), few, folds_of(few))


def _held_out(known: Spectrum, labels: Tensor, folds: Sequence[Tensor], penalty: float, kept: Tensor) -> Tensor:
    """Return the scores [N, C] of each fold by a probe that is fitted to the kept samples of the others."""
    targets, dropped = one_hot(labels), (~kept).nonzero().flatten()
    scores = torch.empty_like(targets)
    for rows in folds:
        without = torch.cat([rows, dropped[~torch.isin(dropped, rows)]])
        without = without if len(without) < len(labels) else rows  # of few samples, all others may be suspects
        scores[rows] = held_out(known, targets, without, penalty)[: len(rows)]
    return scores


def _calibrated(scores: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """Return scores as probabilities at the temperature of the highest likelihood of the kept labels."""
    from scipy.optimize import minimize_scalar

    def loss(power: float) -> float:
        return float(torch.nn.functional.cross_entropy(scores[kept] * math.exp(power), labels[kept]))

    power = float(minimize_scalar(loss, bounds=_POWERS, method="bounded").x)
    return (scores * math.exp(power)).softmax(1)
