"""finetune, with the defaults of `fit` or one of its strategies."""

from __future__ import annotations

from torch import nn

from benchmarks.accuracy.work import Work


def train(work: Work, strategy: str | None = None) -> nn.Module:
    """Fine-tune with a strategy, None for what `fit` does by itself."""
    work.tuner.fit(
        work.data.train,
        val=False,
        epochs=work.task.epochs,
        strategy=strategy,
        batch_size=work.task.batch_size,
        augment=False,
        progress=False,
    )
    return work.tuner.model
