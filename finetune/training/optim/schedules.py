"""Learning-rate schedules as pure functions of progress.

A schedule maps the progress of a phase, in [0, 1], to a factor on the learning rate of every group. It is stateless:
there is nothing to save, and a group added later simply follows. Update k of n runs at progress (k + 1/2) / n, so no
update is wasted on a rate of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from finetune.errors import ArgumentError, is_number, one_of

Schedule = Callable[[float], float]

# Fraction of a phase with linear warm-up. The first updates of Adam have the size of the rate for any gradient, so a
# short warm-up helps every schedule.
WARMUP = 0.05
_ONE_CYCLE_WARMUP = 0.3


def constant(progress: float) -> float:
    """Warm up, then stay constant."""
    return _warmup(progress, WARMUP)


def linear(progress: float) -> float:
    """Warm up, then decay linearly to zero."""
    return min(_warmup(progress, WARMUP), 1 - _after_warmup(progress, WARMUP))


def cosine(progress: float) -> float:
    """Warm up, then decay to zero along half a cosine (SGDR without restarts, arXiv 1608.03983)."""
    return min(_warmup(progress, WARMUP), _half_cosine(_after_warmup(progress, WARMUP)))


def one_cycle(progress: float) -> float:
    """Warm up over the first 30 % along half a cosine, then decay to zero along another (arXiv 1708.07120)."""
    if progress < _ONE_CYCLE_WARMUP:
        return 1 - (1 - 1 / 25) * _half_cosine(progress / _ONE_CYCLE_WARMUP)
    return _half_cosine(_after_warmup(progress, _ONE_CYCLE_WARMUP))


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "one_cycle": one_cycle,
}


def get_schedule(schedule: str | Schedule) -> Schedule:
    """Look up a schedule by name. A function of progress is returned unchanged.

    Raises:
        ArgumentError: If the name is unknown, or the function returns anything but finite numbers.

    Example:
        >>> get_schedule("linear")(1.0)
        0.0
    """
    if isinstance(schedule, str):
        return SCHEDULES[one_of("schedule", schedule, SCHEDULES, "a function of progress in [0, 1]")]
    try:
        factors = [schedule(progress) for progress in (0.0, 0.5, 1.0)]
    except Exception as error:
        raise ArgumentError(
            f"Expected a schedule's name or a function of progress in [0, 1], but got {schedule!r}, which fails at a "
            f"number: {error}. Pass a name such as 'cosine', or a function that returns a factor on the learning rate."
        ) from error
    if not all(is_number(factor) and 0 <= factor < math.inf for factor in factors):
        raise ArgumentError(
            f"Expected a schedule that maps progress in [0, 1] to a finite factor from 0 on, but it returns {factors} "
            f"at 0, 0.5 and 1."
        )
    return schedule


def _warmup(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup)


def _after_warmup(progress: float, warmup: float) -> float:
    return max(0.0, (progress - warmup) / (1 - warmup))


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2
