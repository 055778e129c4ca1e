"""A plain hand-written loop over all layers."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from benchmarks.accuracy.trial import Trial


def train(trial: Trial, optimizer: str) -> nn.Module:
    """Train as in PyTorch's tutorial on transfer learning ("sgd"), or with the defaults of Adam ("adam")."""
    model = trial.tuner.model.train()
    parameters = model.parameters()
    made = SGD(parameters, lr=1e-3, momentum=0.9) if optimizer == "sgd" else Adam(parameters)
    scheduler = StepLR(made, step_size=7, gamma=0.1) if optimizer == "sgd" else None
    for _ in range(trial.task.epochs):
        for X, y in trial.loader():
            made.zero_grad()
            F.cross_entropy(model(X), y).backward()
            made.step()
        if scheduler is not None:
            scheduler.step()
    return model
