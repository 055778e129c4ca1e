"""Poutyne's Model."""

from __future__ import annotations

import poutyne
import torch
from torch import nn

from benchmarks.peers.workload import RATE, WEIGHT_DECAY, Workload

PACKAGE = "poutyne"


def train(workload: Workload) -> float:
    optimizer = torch.optim.AdamW(workload.trained(), lr=RATE, weight_decay=WEIGHT_DECAY)
    model = poutyne.Model(workload.model(autocast=True), optimizer, nn.CrossEntropyLoss(), device=workload.device)
    with workload.timed():
        model.fit_generator(workload.loader(), epochs=workload.task.epochs, verbose=False)
    return workload.seconds
