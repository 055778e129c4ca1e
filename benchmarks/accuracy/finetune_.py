"""finetune, with the defaults of `fit` or one of its strategies."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.accuracy.work import Work


def train(work: Work, **options: Any) -> nn.Module:
    """Fine-tune; `options` are those of `fit` that are not to be its defaults."""
    work.tuner.fit(
        work.data.train,
        val=False,
        epochs=work.task.epochs,
        batch_size=work.task.batch_size,
        augment=False,
        progress=False,
        **options,
    )
    return work.tuner.model
