"""Features decomposed once, so that every score after it costs next to nothing.

With centred features F = U S V' [N, D], ridge regression, the H-score and LogME are all functions of U and S alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Directions with less of the largest one's variance than this are rounding.
_SMALLEST = 1e-10


@dataclass(frozen=True)
class Spectrum:
    """Centred features [N, D] as left singular vectors and variances.

    Attributes:
        vectors: float64 [N, R], orthonormal columns.
        values: float64 [R], the squared singular values.
        num_features: D.
    """

    vectors: Tensor
    values: Tensor
    num_features: int


def spectrum(*features: Tensor) -> Spectrum:
    """Decompose features [N, D] side by side, each column at unit variance, each matrix at unit weight in all."""
    scaled = [_standardized(matrix) for matrix in features]
    samples, width = len(scaled[0]), sum(matrix.shape[1] for matrix in scaled)
    if width < samples:
        joined = torch.cat(scaled, 1)
        values, right = torch.linalg.eigh(joined.T @ joined)
        kept = _more_than_rounding(values)
        return Spectrum(joined @ right[:, kept] / values[kept].sqrt(), values[kept], width)
    values, vectors = torch.linalg.eigh(sum(matrix @ matrix.T for matrix in scaled))
    kept = _more_than_rounding(values)
    return Spectrum(vectors[:, kept], values[kept], width)


def _more_than_rounding(values: Tensor) -> Tensor:
    """Tell of each squared singular value whether it is more than rounding; none is where no feature varies."""
    return values > _SMALLEST * max(values.tolist(), default=0.0)


def _standardized(features: Tensor) -> Tensor:
    """Return the columns at zero mean and unit variance over sqrt(D), those that do not vary left out."""
    centred = features.double() - features.double().mean(0)
    deviation = centred.square().mean(0).sqrt()
    varies = deviation > 1e-6 * deviation.max().clamp(min=1e-12)
    scaled: Tensor = centred[:, varies] / deviation[varies]
    return scaled / math.sqrt(max(1, int(varies.sum())))
