"""Monitored values: the number that a callback watches every epoch."""

from __future__ import annotations

from collections.abc import Iterable

from finetune.errors import ArgumentError, nearest
from finetune.training.metrics import higher_is_better
from finetune.training.run import Run


def check_monitor(monitor: str, names: Iterable[str]) -> None:
    """Check that a run has the value to monitor.

    Raises:
        ArgumentError: If the run has no such value.
    """
    names = list(names)
    if monitor not in names:
        raise ArgumentError(
            f"There is no value {monitor!r} to monitor.{nearest(monitor, names)} This run has {', '.join(names)}. "
            f"Values named val_... require validation data."
        )


def monitored(run: Run, monitor: str) -> float:
    """Return the monitored value of the current epoch, negated if higher is better."""
    check_monitor(monitor, [key for key, value in run.row.items() if isinstance(value, float)])
    value = float(run.row[monitor])
    return -value if higher_is_better(monitor, run.metrics) else value
