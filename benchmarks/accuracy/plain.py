"""The loop that everyone writes by hand; everything trains."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from benchmarks.accuracy.work import Work


def train(work: Work, optimizer: str) -> nn.Module:
    """Train as PyTorch's tutorial on transfer learning does ("sgd"), or with Adam at its own defaults ("adam")."""
    model = work.tuner.model.train()
    parameters = model.parameters()
    made = SGD(parameters, lr=1e-3, momentum=0.9) if optimizer == "sgd" else Adam(parameters)
    scheduler = StepLR(made, step_size=7, gamma=0.1) if optimizer == "sgd" else None
    for _ in range(work.task.epochs):
        for X, y in work.loader():
            made.zero_grad()
            F.cross_entropy(model(X), y).backward()
            made.step()
        if scheduler is not None:
            scheduler.step()
    return model
