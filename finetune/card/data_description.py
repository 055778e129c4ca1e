"""The data of a run in plain values, for checkpoints and their cards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.data.sources.base import Source


def described_data(train: Source, val: Source | None, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return the kind of inputs, and the number of samples of each part and class.

    Example:
        >>> from finetune.data.sources.arrays import Arrays
        >>> described_data(Arrays(torch.zeros(3, 2), torch.tensor([0, 1, 1])), None, ["cat", "dog"])["training"]
        {'samples': 3, 'per_class': [1, 2]}
    """
    return {
        "kind": train.kind,
        "training": _part(train, classes),
        "validation": None if val is None else _part(val, classes),
    }


def _part(source: Source, classes: Sequence[str] | None) -> dict[str, Any]:
    targets = source.targets
    counts = None
    if isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point() and classes:
        found = torch.bincount(targets[targets >= 0].cpu(), minlength=len(classes)).tolist()
        counts = found if len(found) == len(classes) else None
    return {"samples": source.num_samples, "per_class": counts}
