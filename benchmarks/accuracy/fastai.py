"""fastai's `fine_tune`, with the two parameter groups that `vision_learner` uses for unknown architectures."""

from __future__ import annotations

from fastai.callback.core import Callback, CancelValidException
from fastai.callback.schedule import Learner  # with fine_tune
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.vision.learner import apply_init, create_head, default_split
from torch import nn

from benchmarks.accuracy.trial import Trial


class NoValidation(Callback):
    def before_validate(self) -> None:
        raise CancelValidException


def head(features: int, num_classes: int) -> nn.Module:
    """Return the head that `vision_learner` puts after the pooling."""
    made: nn.Module = create_head(features, num_classes, pool=False)
    apply_init(made, nn.init.kaiming_normal_)
    return made


def train(trial: Trial) -> nn.Module:
    """Train the head for the first epoch of the budget and all layers for the rest."""
    loader = DataLoader(trial.dataset(), bs=trial.task.batch_size, shuffle=True)
    model = trial.split()
    learner = Learner(
        DataLoaders(loader, loader, device="cpu"),
        model,
        nn.CrossEntropyLoss(),
        splitter=default_split,
        cbs=[NoValidation()],
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(trial.task.epochs - 1)  # adds one epoch, the default freeze_epochs
    return model
