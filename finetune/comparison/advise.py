"""`advise` for several models: which of them knows most of a data set."""

from __future__ import annotations

from typing import Any

from finetune.advice.judgement import Advice
from finetune.comparison.entries import Models, labelled_models, make
from finetune.tuner import FineTuner


def advise(
    models: Models, train: Any, val: Any = None, *, samples: int = 2000, batch_size: int = 32, **settings: Any
) -> dict[str, Advice]:
    """Ask for advice with each of several models, and sort them, the best for this data set first.

    That is the one whose features let a linear probe be right most often on samples it has not seen; LogME decides
    between equals. Fine-tuning may turn the order of models that are close.

    Args:
        models: a name, a module or a function without arguments that makes one; a list of these, or a mapping of
            label to one.
        train, val, samples, batch_size: as `FineTuner.advise` takes them.
        settings: keyword arguments of `FineTuner`.

    Returns:
        The advice by the model's label, in that order.

    Raises:
        ArgumentError, DataError, HeadError: as `FineTuner.advise` does, for any of the models.
    """
    found = {}
    for label, model in labelled_models(models).items():
        tuner = FineTuner(make(model, label, settings.get("seed", 0)), **settings)
        found[label] = tuner.advise(train, val, samples=samples, batch_size=batch_size)
    worth = {label: (advice.evidence.probe, advice.evidence.log_me) for label, advice in found.items()}
    return {label: found[label] for label in sorted(found, key=worth.__getitem__, reverse=True)}
