"""A run in plain values, for trackers of experiments: its configuration, and its best values."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from math import isfinite
from typing import Any

from finetune.errors import ArgumentError, is_number
from finetune.training.history import BOOKKEEPING
from finetune.training.metrics import higher_is_better
from finetune.training.resuming.facts import fact
from finetune.training.run import Run

_PACKAGES = ("torch-finetune", "torch", "torchvision", "timm", "transformers")


def described(run: Run) -> dict[str, Any]:
    """Return the configuration of a run: model, data, settings, strategy, phases and environment."""
    preprocessing = run.train.preprocessing
    return {
        "model": {
            "name": (run.network.origin or {}).get("name") or type(run.model).__name__,
            "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
            "outputs": run.num_outputs,
            "heads": list(run.heads),
        },
        "data": {
            "training_samples": run.train.source.num_samples,
            "validation_samples": None if run.val is None else run.val.source.num_samples,
            "classes": None if run.train.source.classes is None else list(run.train.source.classes),
            "batch_size": run.train.batch_size,
            "augment": fact(run.train.augment),
            "preprocessing": None if preprocessing is None else fact(preprocessing.to_dict()),
        },
        "settings": {**run.settings.plain(), **run.settings.objects()},
        "task": run.task.kind,
        "strategy": run.strategy,
        "phases": [fact(phase) for phase in run.phases],
        "plan": list(run.plan),
        "callbacks": [type(callback).__name__ for callback in run.callbacks if not callback.only_watches],
        "environment": {
            "device": str(run.precision.device),
            "precision": run.precision.name,
            "python": platform.python_version(),
            **dict(_versions()),
        },
    }


def best_values(run: Run, first_row: int = 0) -> dict[str, float]:
    """Return the best of each loss and metric over the epochs from `first_row` of the history on, by name.

    Left out are values that are not finite, and metrics that do not say which way is better.
    """
    best: dict[str, float] = {}
    for row in list(run.history)[first_row:]:
        for name, value in row.items():
            if name not in BOOKKEEPING and is_number(value) and isfinite(value):
                with suppress(ArgumentError):
                    better = max if higher_is_better(name, run.metrics) else min
                    best[name] = better(best.get(name, value), value)
    return best


def flat(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each plain value of a nesting, with its path joined by dots as its name.

    Example:
        >>> dict(flat({"settings": {"seed": 0}, "phases": [{"epochs": 3}], "heads": ["fc"]}))
        {'settings.seed': 0, 'phases.0.epochs': 3, 'heads': ['fc']}
    """
    for key, value in values.items():
        name = f"{within}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield from flat({str(i): item for i, item in enumerate(value)}, f"{name}.")
        else:
            yield name, value


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)
