"""Interpretations of random outputs, of every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from finetune import Interpretation
from finetune.data.sources.open_source import open_source
from finetune.interpret.calibration import Calibration
from finetune.interpret.predictions import Predictions
from finetune.training.tasks import infer_task

LOSSES = {"classification": "cross_entropy", "binary": "bce", "multilabel": "bce", "regression": "mse"}


def interpreted(
    kind: str,
    outputs: Tensor,
    targets: Tensor,
    classes: Sequence[str] | None = None,
    *,
    inputs: Any = None,
    loss: Any = None,
    calibration: Calibration | None = None,
) -> Interpretation:
    """Return the interpretation of outputs [N, C] and targets."""
    task = infer_task(loss or LOSSES[kind], None, outputs.shape[1])
    assert task.kind == kind
    source = open_source((torch.zeros(len(outputs), 2) if inputs is None else inputs, targets))
    names = None if classes is None else tuple(classes)
    return Interpretation(Predictions(outputs, task, source, names, targets, calibration or Calibration()))


def random_answers(
    kind: str, samples: int, count: int, seed: int, calibration: Calibration | None = None, **options: Any
) -> Interpretation:
    """Return the interpretation of random outputs, which are often right and often wrong."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, count, generator=generator)
    if kind == "classification":
        targets = torch.randint(count, (samples,), generator=generator)
        outputs = noise + torch.nn.functional.one_hot(targets, count)
    elif kind == "regression":
        targets = torch.randn(samples, count, generator=generator)
        outputs = targets + noise
    else:
        targets = torch.randint(2, (samples, count), generator=generator).float()
        outputs = noise + targets
    return interpreted(kind, outputs, targets, calibration=calibration, **options)
