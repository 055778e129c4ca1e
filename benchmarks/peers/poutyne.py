"""Poutyne's Model."""

from __future__ import annotations

import poutyne
import torch
from torch import nn

from benchmarks.peers.work import RATE, WEIGHT_DECAY, Work

PACKAGE = "poutyne"


def train(work: Work) -> float:
    optimizer = torch.optim.AdamW(work.trained(), lr=RATE, weight_decay=WEIGHT_DECAY)
    model = poutyne.Model(work.model(autocast=True), optimizer, nn.CrossEntropyLoss(), device=work.device)
    with work.timed():
        model.fit_generator(work.loader(), epochs=work.task.epochs, verbose=False)
    return work.seconds
