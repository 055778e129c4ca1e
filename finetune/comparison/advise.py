"""`advise` for several models: rank them by how well their features suit a dataset."""

from __future__ import annotations

from typing import Any

from finetune.advice.advice import Advice
from finetune.comparison.candidates import Models, build_model, labeled_models
from finetune.naming.arguments import whole_numbers
from finetune.signals.stops import signals_heeded
from finetune.tuner import FineTuner


@signals_heeded()
def advise(
    models: Models, train: Any, val: Any = None, *, samples: int = 2000, batch_size: int = 32, **settings: Any
) -> dict[str, Advice]:
    """Ask each model for advice on the data, and return the best model first.

    Models are ranked by the accuracy of a linear probe on held-out samples, with LogME as the tie-breaker.
    Fine-tuning may reverse the order of models with similar scores.

    Args:
        models: A model name, a module, or a function that takes no arguments and returns a module; a list of these,
            or a mapping from labels to them.
        train, val, samples, batch_size: As in `FineTuner.advise`.
        settings: Keyword arguments of `FineTuner`.

    Returns:
        Advice by model label, best model first.

    Raises:
        ArgumentError: If there is no model, or one is invalid.
        DataError: If the data cannot be used.
        HeadError: If the head of a model cannot be identified.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> models = {width: nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)) for width in (8, 32)}
        >>> X = torch.randn(60, 4)
        >>> advice = advise(models, (X, (X[:, 0] > 0).long()))
        >>> sorted(advice)
        ['32', '8']
    """
    counts = whole_numbers({"samples": samples, "batch_size": batch_size})
    advice = {}
    for label, model in labeled_models(models).items():
        tuner = FineTuner(build_model(model, label, settings.get("seed", 0)), **settings)
        advice[label] = tuner.advise(train, val, **counts)
    score = {label: (each.evidence.probe, each.evidence.log_me) for label, each in advice.items()}
    return {label: advice[label] for label in sorted(advice, key=score.__getitem__, reverse=True)}
