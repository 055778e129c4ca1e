"""Scores of features for classification, as functions of their singular value decomposition and the class indices.

The cross-validated accuracy of a linear probe estimates a new head on frozen features, not the gain of fine-tuning.
Nearest neighbors estimate the same without a linear map. The H-score and LogME compare models on one dataset; their
scales differ between datasets. LEEP (arXiv 2002.12462), which needs only the outputs of the pretrained head, is
omitted because it depends more on the number of its classes than on the transfer.

With centered features F = U S V' [N, D], ridge regression, the H-score and LogME depend only on U and S, so the
features are decomposed once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Penalties of the ridge regression, in units of the mean feature variance.
_PENALTIES = tuple(10.0**power for power in range(2, -5, -1))

_NEIGHBORS = 5
_ROWS_AT_ONCE = 1024

# Directions below this fraction of the largest variance are rounding errors.
_RELATIVE_VARIANCE = 1e-10


@dataclass(frozen=True)
class Spectrum:
    """Centered features [N, D] as left singular vectors and squared singular values.

    Attributes:
        vectors: Orthonormal columns, float64 [N, R].
        values: Squared singular values, float64 [R].
        num_features: Number of features D.
    """

    vectors: Tensor
    values: Tensor
    num_features: int


def spectrum(*features: Tensor) -> Spectrum:
    """Decompose matrices of features [N, D], concatenated with unit variance per column and unit weight per matrix."""
    scaled = [_standardized(matrix) for matrix in features]
    samples, width = len(scaled[0]), sum(matrix.shape[1] for matrix in scaled)
    if width < samples:
        joined = torch.cat(scaled, 1)
        values, right = torch.linalg.eigh(joined.T @ joined)
        kept = _significant(values)
        return Spectrum(joined @ right[:, kept] / values[kept].sqrt(), values[kept], width)
    values, vectors = torch.linalg.eigh(sum(matrix @ matrix.T for matrix in scaled))
    kept = _significant(values)
    return Spectrum(vectors[:, kept], values[kept], width)


def h_score(features: Spectrum, labels: Tensor) -> float:
    """Return the H-score, from 0 to C - 1: the feature variance between the C classes, relative to the total.

    The covariance estimate uses Ledoit-Wolf shrinkage. Without it, more features than samples give every model a
    perfect score (H-score: Bao et al., 2019; with shrinkage: Ibrahim et al., arXiv 2110.06893).
    """
    samples = len(labels)
    between = (one_hot(labels) / labels.bincount()[labels.unique()].sqrt()).T @ features.vectors
    variances = features.values / samples
    mean = variances.sum() / features.num_features
    shrinkage = _shrinkage(features)
    inverse = 1 / ((1 - shrinkage) * variances + shrinkage * mean)
    return float((1 - shrinkage) * (between.square() * features.values * inverse).sum() / samples)


def log_me(features: Spectrum, labels: Tensor) -> float:
    """Return LogME: the log evidence per sample of a Bayesian linear model, averaged over the classes.

    Higher is better. Compare models on the same data only (You et al., arXiv 2102.11005).
    """
    targets = one_hot(labels)
    targets = targets - targets.mean(0)
    return float(torch.stack([_evidence(features, target) for target in targets.T]).mean())


def knn_accuracy(features: Tensor, labels: Tensor, neighbors: int = _NEIGHBORS) -> float:
    """Return the leave-one-out accuracy of a nearest-neighbor classifier on features [N, D] by cosine similarity.

    Votes are weighted by similarity, which avoids ties.
    """
    centered = torch.nn.functional.normalize(features.double() - features.double().mean(0), dim=1)
    targets = one_hot(labels)
    right = 0
    for rows in torch.arange(len(labels)).split(_ROWS_AT_ONCE):
        similar = centered[rows] @ centered.T
        similar[torch.arange(len(rows)), rows] = -math.inf  # exclude the sample itself
        nearest = similar.topk(min(neighbors, len(labels) - 1))
        votes = (targets[nearest.indices] * (1 + nearest.values).unsqueeze(2)).sum(1)
        right += int((votes.argmax(1) == targets[rows].argmax(1)).sum())
    return right / len(labels)


def best_penalty(features: Spectrum, labels: Tensor, folds: Sequence[Tensor]) -> float:
    """Return the penalty with the best cross-validated accuracy of a linear probe."""
    right = {penalty: sum(probe_accuracies(features, labels, folds, penalty)) for penalty in _PENALTIES}
    return max(right, key=right.__getitem__)  # ties go to the largest penalty, which comes first


def probe_accuracies(features: Spectrum, labels: Tensor, folds: Sequence[Tensor], penalty: float) -> list[float]:
    """Return the accuracy of a linear probe on each fold of samples [M], trained on the others.

    The probe is a ridge regression onto one-hot classes: as accurate as a trained head, with a closed-form solution.
    """
    targets = one_hot(labels)
    classes = targets.argmax(1)
    predicted = [held_out(features, targets, fold, penalty).argmax(1) for fold in folds]
    return [float((own == classes[fold]).double().mean()) for fold, own in zip(folds, predicted, strict=True)]


def held_out(features: Spectrum, targets: Tensor, rows: Tensor, penalty: float) -> Tensor:
    """Return the predictions [M, C] of a ridge regression for held-out rows [M], trained on the others.

    With the hat matrix H of the fit to all rows, the residuals of held-out rows I are (1 - H_II)^-1 times the
    residuals of the fit, which is exact for the same features and penalty (Cook and Weisberg, 1982). H_II has the rank
    of the features, so that of many rows the inverse follows from a smaller matrix (Woodbury, 1950).
    """
    variance = features.values / len(targets)
    shrunk = features.vectors * (variance / (variance + penalty * variance.mean()))
    fitted = targets.mean(0) + shrunk @ (features.vectors.T @ targets)
    # The last column is the intercept, which has no penalty.
    one = torch.ones(len(rows), 1, dtype=targets.dtype)
    left = torch.cat([shrunk[rows], one / len(targets)], 1)
    right = torch.cat([features.vectors[rows], one], 1)
    residuals = targets[rows] - fitted[rows]
    if len(rows) <= left.shape[1]:
        influence = torch.eye(len(rows), dtype=targets.dtype) - left @ right.T
        held: Tensor = torch.linalg.solve(influence, residuals)
    else:
        influence = torch.eye(left.shape[1], dtype=targets.dtype) - right.T @ left
        held = residuals + left @ torch.linalg.solve(influence, right.T @ residuals)
    return targets[rows] - held


def one_hot(labels: Tensor) -> Tensor:
    """Return one-hot labels, float64 [N, C], over the classes that occur."""
    _, indices = labels.unique(return_inverse=True)
    return torch.nn.functional.one_hot(indices).double()


def _shrinkage(features: Spectrum) -> float:
    """Return the Ledoit-Wolf weight of the identity in the covariance estimate, from 0 to 1."""
    samples, width = len(features.vectors), features.num_features
    variances = features.values / samples
    mean = variances.sum() / width
    distance = variances.square().sum() - width * mean**2
    norms = (features.vectors.square() * features.values).sum(1)  # squared, per sample
    spread = (norms.square().sum() / samples - variances.square().sum()) / samples
    return 1.0 if distance <= 0 else float((spread / distance).clamp(0, 1))


def _evidence(features: Spectrum, target: Tensor) -> Tensor:
    """Return the log evidence per sample for one centered target [N], with both precisions optimized."""
    samples, values = len(target) - 1, features.values  # the mean takes one degree of freedom
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


def _significant(values: Tensor) -> Tensor:
    """Return a mask of the squared singular values above rounding error; all False if no feature varies."""
    return values > _RELATIVE_VARIANCE * max(values.tolist(), default=0.0)


def _standardized(features: Tensor) -> Tensor:
    """Return the columns with zero mean and variance 1 / D, without constant ones."""
    centered = features.double() - features.double().mean(0)
    deviation = centered.square().mean(0).sqrt()
    varies = deviation > 1e-6 * deviation.max().clamp(min=1e-12)
    scaled: Tensor = centered[:, varies] / deviation[varies]
    return scaled / math.sqrt(max(1, int(varies.sum())))
