"""skorch's NeuralNet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from skorch import NeuralNet
from torch import nn

from benchmarks.peers.workload import RATE, WEIGHT_DECAY, Workload

PACKAGE = "skorch"


class Net(NeuralNet):
    def get_all_learnable_params(self) -> Iterator[Any]:
        return ((name, value) for name, value in super().get_all_learnable_params() if value.requires_grad)


def train(workload: Workload) -> float:
    net = Net(
        workload.model(autocast=True),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=WEIGHT_DECAY,
        lr=RATE,
        max_epochs=workload.task.epochs,
        batch_size=workload.task.batch_size,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks__print_log=None,
        device=workload.task.device,
    )
    with workload.timed():
        net.fit(workload.dataset(), None)
    return workload.seconds
