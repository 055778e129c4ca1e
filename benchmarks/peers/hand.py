"""A plain hand-written loop."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.peers.workload import RATE, WEIGHT_DECAY, Workload

PACKAGE = "torch"


def train(workload: Workload) -> float:
    model, device = workload.model(autocast=True), workload.device
    with workload.timed():
        optimizer = torch.optim.AdamW(workload.trained(), lr=RATE, weight_decay=WEIGHT_DECAY)
        model.train()
        for _ in range(workload.task.epochs):
            for X, y in workload.loader():
                loss = F.cross_entropy(model(X.to(device)), y.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return workload.seconds
