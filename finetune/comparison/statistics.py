"""Confidence intervals and significance tests for means over a few seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from finetune.training.metrics.named import bounds


def half_width(values: Sequence[float], level: float = 0.95) -> float | None:
    """Return half the width of the confidence interval of the mean (Student's t), or None for fewer than 2 values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # loads in a fraction of the time of scipy.stats

    deviation = statistics.stdev(values) / math.sqrt(len(values))
    return float(stdtrit(len(values) - 1, (1 + level) / 2)) * deviation


def interval(values: Sequence[float], metric: str = "") -> tuple[float, float] | None:
    """Return the confidence interval of the mean (Student's t), or None for fewer than 2 values.

    Args:
        values: Value of each seed.
        metric: Name of the metric, whose range limits the interval. A loss of one's own may be negative.

    Example:
        >>> interval([0.5, 0.7], "accuracy")
        (0.0, 1.0)
    """
    half = half_width(values)
    if half is None:
        return None
    lowest, highest = bounds(metric)
    if min(values) < lowest or max(values) > highest:  # another metric of the same name
        lowest, highest = -math.inf, math.inf
    mean = statistics.fmean(values)
    return max(lowest, mean - half), min(highest, mean + half)


def paired_p_value(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Return the p-value of the two-sided paired t-test between two series.

    It is 1 if all pairs are equal, and None for fewer than 2 pairs or if all differences are equal, because the test
    needs their spread.
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation <= 1e-12 * max(map(abs, (*values, *others))):  # equal up to rounding
        return 1.0 if mean == 0 else None
    from scipy.special import stdtr

    t = mean / deviation * math.sqrt(len(differences))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for multiple tests (Holm 1979). None means no test and stays None."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[index] = highest
    return corrected
