"""The loop that everyone writes by hand."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.peers.work import RATE, WEIGHT_DECAY, Work

PACKAGE = "torch"


def train(work: Work) -> float:
    model, device = work.model(autocast=True), work.device
    with work.timed():
        optimizer = torch.optim.AdamW(work.trained(), lr=RATE, weight_decay=WEIGHT_DECAY)
        model.train()
        for _ in range(work.task.epochs):
            for X, y in work.loader():
                loss = F.cross_entropy(model(X.to(device)), y.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return work.seconds
