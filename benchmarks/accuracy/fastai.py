"""fastai's `fine_tune`, over the two groups that `vision_learner` makes of an architecture it does not know."""

from __future__ import annotations

from fastai.callback.core import Callback, CancelValidException
from fastai.callback.schedule import Learner  # with fine_tune
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.vision.learner import apply_init, create_head, default_split
from torch import nn

from benchmarks.accuracy.work import Work


class NoValidation(Callback):
    def before_validate(self) -> None:
        raise CancelValidException


def head(features: int, num_classes: int) -> nn.Module:
    """Make what `vision_learner` puts behind the pooling."""
    made: nn.Module = create_head(features, num_classes, pool=False)
    apply_init(made, nn.init.kaiming_normal_)
    return made


def train(work: Work) -> nn.Module:
    """Train the head alone for one epoch and everything for the others, which together are the budget."""
    loader = DataLoader(work.dataset(), bs=work.task.batch_size, shuffle=True)
    model = work.split()
    learner = Learner(
        DataLoaders(loader, loader, device="cpu"),
        model,
        nn.CrossEntropyLoss(),
        splitter=default_split,
        cbs=[NoValidation()],
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(work.task.epochs - 1)  # which trains one epoch more, its default freeze_epochs
    return model
