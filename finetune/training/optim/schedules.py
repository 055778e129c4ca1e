"""Learning-rate schedules as pure functions of progress.

A schedule maps the progress of a phase, in [0, 1], to a factor on the learning rate of every group.
It holds no state: nothing needs saving, and a group that joins later simply takes part. Update k of n
runs at progress (k + 1/2) / n, so that no update is spent at a rate of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from finetune.errors import ArgumentError, nearest

Schedule = Callable[[float], float]

# The share of a phase over which the rate rises linearly to its full value. Adam's first updates have
# the size of the rate whatever the gradient's, so that a short rise is worth having everywhere.
WARMUP = 0.05
_ONE_CYCLE_WARMUP = 0.3


def constant(progress: float) -> float:
    """Rise, then stay."""
    return _rise(progress, WARMUP)


def linear(progress: float) -> float:
    """Rise, then fall to zero in a straight line."""
    return min(_rise(progress, WARMUP), 1 - _after(progress, WARMUP))


def cosine(progress: float) -> float:
    """Rise, then fall to zero along half a cosine (SGDR without restarts, arXiv 1608.03983)."""
    return min(_rise(progress, WARMUP), _half_cosine(_after(progress, WARMUP)))


def one_cycle(progress: float) -> float:
    """Rise over the first 30 % along half a cosine, then fall along another (arXiv 1708.07120)."""
    if progress < _ONE_CYCLE_WARMUP:
        return 1 - (1 - 1 / 25) * _half_cosine(progress / _ONE_CYCLE_WARMUP)
    return _half_cosine(_after(progress, _ONE_CYCLE_WARMUP))


_NAMED: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "one_cycle": one_cycle,
}


def get_schedule(schedule: str | Schedule) -> Schedule:
    """Return the schedule of that name, or the given function of progress itself.

    Raises:
        ArgumentError: there is no such schedule, or the function gives no finite number.
    """
    if isinstance(schedule, str):
        if schedule not in _NAMED:
            raise ArgumentError(
                f"There is no schedule {schedule!r}.{nearest(schedule, _NAMED)} Expected one of "
                f"{', '.join(_NAMED)}, or a function of progress in [0, 1]."
            )
        return _NAMED[schedule]
    if not callable(schedule):
        raise ArgumentError(f"Expected a schedule's name or a function of progress in [0, 1], but got {schedule!r}.")
    factors = [schedule(progress) for progress in (0.0, 0.5, 1.0)]
    if not all(isinstance(factor, (int, float)) and math.isfinite(factor) for factor in factors):
        raise ArgumentError(
            f"Expected a schedule that maps progress in [0, 1] to a finite factor on the learning rate, but at 0, "
            f"0.5 and 1 it gives {factors}."
        )
    return schedule


def _rise(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup)


def _after(progress: float, warmup: float) -> float:
    return max(0.0, (progress - warmup) / (1 - warmup))


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2
