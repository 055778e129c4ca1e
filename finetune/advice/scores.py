"""Scores of features for a classification, each a function of their spectrum and the class indices.

What each can tell: a linear probe's accuracy on samples it has not seen is what a new head on frozen features gives,
and says nothing of what fine-tuning would add. Nearest neighbours say the same without a linear map. The H-score and
LogME compare models on one data set; across data sets their scales differ. LEEP (arXiv 2002.12462), which needs only a
model's old outputs, is left out: it depends on how many classes those have more than on the transfer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.advice.spectrum import Spectrum

# The penalty of the probe's ridge regression, in units of the features' mean variance.
_PENALTIES = tuple(10.0**power for power in range(2, -5, -1))

_NEIGHBOURS = 5
_ROWS_AT_ONCE = 1024


def h_score(features: Spectrum, labels: Tensor) -> float:
    """Return the H-score, from 0 to C - 1: how much of the features' variance lies between the C classes.

    The covariance is shrunk as Ledoit and Wolf do, without which more features than samples make every score perfect
    (H-score: Bao et al., 2019; shrunk: Ibrahim et al., arXiv 2110.06893).
    """
    samples = len(labels)
    between = (_one_hot(labels) / labels.bincount()[labels.unique()].sqrt()).T @ features.vectors
    variances = features.values / samples
    mean = variances.sum() / features.num_features
    shrinkage = _shrinkage(features)
    inverse = 1 / ((1 - shrinkage) * variances + shrinkage * mean)
    return float((1 - shrinkage) * (between.square() * features.values * inverse).sum() / samples)


def log_me(features: Spectrum, labels: Tensor) -> float:
    """Return LogME: the logarithm of the evidence of a Bayesian linear model per sample, mean over the classes.

    Higher is better, between models on the same data only (You et al., arXiv 2102.11005).
    """
    targets = _one_hot(labels)
    targets = targets - targets.mean(0)
    return float(torch.stack([_evidence(features, target) for target in targets.T]).mean())


def knn_accuracy(features: Tensor, labels: Tensor, neighbours: int = _NEIGHBOURS) -> float:
    """Return how often the most similar other samples [N, D] by cosine vote for a sample's own class.

    The vote is weighted by similarity, so that it does not tie.
    """
    centred = torch.nn.functional.normalize(features.double() - features.double().mean(0), dim=1)
    targets = _one_hot(labels)
    right = 0
    for rows in torch.arange(len(labels)).split(_ROWS_AT_ONCE):
        similar = centred[rows] @ centred.T
        similar[torch.arange(len(rows)), rows] = -math.inf  # not itself
        nearest = similar.topk(min(neighbours, len(labels) - 1))
        votes = (targets[nearest.indices] * (1 + nearest.values).unsqueeze(2)).sum(1)
        right += int((votes.argmax(1) == targets[rows].argmax(1)).sum())
    return right / len(labels)


def best_penalty(features: Spectrum, labels: Tensor, folds: Sequence[Tensor]) -> float:
    """Return the penalty with which a linear probe is right most often on folds that it was not trained on."""
    right = {penalty: sum(probe_accuracies(features, labels, folds, penalty)) for penalty in _PENALTIES}
    return max(right, key=right.__getitem__)  # of equals the largest, which comes first


def probe_accuracies(features: Spectrum, labels: Tensor, folds: Sequence[Tensor], penalty: float) -> list[float]:
    """Return a linear probe's accuracy on each fold of samples [M], trained on all that are not in it.

    The probe is a ridge regression onto the classes: as good as a trained head, and solved in closed form.
    """
    targets = _one_hot(labels)
    classes = targets.argmax(1)
    predicted = [held_out(features, targets, fold, penalty).argmax(1) for fold in folds]
    return [float((own == classes[fold]).double().mean()) for fold, own in zip(folds, predicted, strict=True)]


def held_out(features: Spectrum, targets: Tensor, rows: Tensor, penalty: float) -> Tensor:
    """Return a ridge regression's predictions [M, C] for the rows [M], as trained on all others.

    With the smoother H of the fit to all, the residuals of rows I that are left out are (1 - H_II)^-1 times those of
    the fit: exact for the same features and penalty (Cook and Weisberg, 1982).
    """
    variance = features.values / len(targets)
    shrunk = features.vectors * (variance / (variance + penalty * variance.mean()))
    fitted = targets.mean(0) + shrunk @ (features.vectors.T @ targets)
    influence = shrunk[rows] @ features.vectors[rows].T + 1 / len(targets)  # the constant term has no penalty
    left = torch.eye(len(rows), dtype=targets.dtype) - influence
    residuals: Tensor = torch.linalg.solve(left, targets[rows] - fitted[rows])
    return targets[rows] - residuals


def _one_hot(labels: Tensor) -> Tensor:
    """Return float64 [N, C] over the classes that occur."""
    _, indices = labels.unique(return_inverse=True)
    return torch.nn.functional.one_hot(indices).double()


def _shrinkage(features: Spectrum) -> float:
    """Return the share of the identity in Ledoit and Wolf's covariance, from 0 to 1."""
    samples, width = len(features.vectors), features.num_features
    variances = features.values / samples
    mean = variances.sum() / width
    distance = variances.square().sum() - width * mean**2
    norms = (features.vectors.square() * features.values).sum(1)  # of each sample, squared
    spread = (norms.square().sum() / samples - variances.square().sum()) / samples
    return 1.0 if distance <= 0 else float((spread / distance).clamp(0, 1))


def _evidence(features: Spectrum, target: Tensor) -> Tensor:
    """Return the log evidence per sample for one class's centred target [N], its two precisions fitted to it."""
    samples, values = len(target) - 1, features.values  # the mean has taken one direction
    along = (features.vectors.T @ target).square()
    beside = (target.square().sum() - along.sum()).clamp(min=0)
    alpha, beta = torch.ones((), dtype=values.dtype), torch.ones((), dtype=values.dtype)
    for _ in range(100):
        ratio = alpha / beta
        effective = (values / (ratio + values)).sum()
        weights = (values * along / (ratio + values).square()).sum().clamp(min=1e-12)
        residual = ((ratio / (ratio + values)).square() * along).sum() + beside
        alpha, beta = effective / weights, (samples - effective) / residual.clamp(min=1e-12)
        if torch.isclose(alpha / beta, ratio, rtol=1e-3):
            break
    fit = beta * residual + alpha * weights
    complexity = torch.log1p(values * beta / alpha).sum()
    return 0.5 * (samples * (beta.log() - math.log(2 * math.pi)) - complexity - fit) / samples
