"""finetune, with the defaults of `fit` or one of its strategies."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.accuracy.trial import Trial


def train(trial: Trial, **options: Any) -> nn.Module:
    """Fine-tune with the defaults of `fit`, except for `options`."""
    trial.tuner.fit(
        trial.data.train,
        val=False,
        epochs=trial.task.epochs,
        batch_size=trial.task.batch_size,
        augment=False,
        progress=False,
        **options,
    )
    return trial.tuner.model
