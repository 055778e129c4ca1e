"""Monitored values: the number that a callback watches every epoch."""

from __future__ import annotations

import math

from finetune.errors import one_of
from finetune.training.metrics import higher_is_better
from finetune.training.run import Run


def check_monitor(run: Run, monitor: str, mode: str | None = None) -> None:
    """Check that a run has the value to monitor, and that it is known which way the value improves.

    Args:
        run: Run before its first epoch.
        monitor: Value to monitor.
        mode: `"max"`, `"min"`, or None if the metric decides.

    Raises:
        ArgumentError: If the run has no such value, or the direction is unknown.
    """
    _check_name(monitor, run.monitored_names())
    higher_is_better(monitor, run.metrics, mode)


def monitored(run: Run, monitor: str, mode: str | None = None) -> float:
    """Return the monitored value of the current epoch, negated if higher is better. NaN if it is not finite."""
    _check_name(monitor, [key for key, value in run.row.items() if isinstance(value, float)])
    value = float(run.row[monitor])
    if not math.isfinite(value):
        return math.nan  # an infinite value is no best one
    return -value if higher_is_better(monitor, run.metrics, mode) else value


def _check_name(monitor: str, names: list[str]) -> None:
    validated = any(name.startswith("val_") for name in names)
    others = "" if validated else f"with validation data one of {', '.join(f'val_{name}' for name in names)}"
    one_of("monitored value", monitor, names, others)
