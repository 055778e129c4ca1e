"""A hand-written loop with finetune's optimizations, for this network only: the baseline for the library's overhead."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.workload import PARTS, RATE, WEIGHT_DECAY, Normalised, Workload

PACKAGE = "torch"


def train(workload: Workload) -> float:
    task, device = workload.task, workload.device
    with workload.timed():
        model = workload.model().to(memory_format=torch.channels_last).train()
        frozen, trains = _split(model.network, PARTS[task.part])
        X, y = workload.arrays if not task.folder else _decoded(workload)
        y = y.to(device)
        if len(frozen):
            with torch.no_grad(), _autocast(workload):
                X = torch.cat([frozen(_normalised(model, part, device)) for part in X.split(task.batch_size)])
        optimizer = torch.optim.AdamW(workload.trained(), lr=RATE, weight_decay=WEIGHT_DECAY, fused=True)
        for _ in range(task.epochs):
            for indices in torch.randperm(len(y)).split(task.batch_size):
                batch, labels = X[indices.to(X.device)], y[indices.to(device)]
                with _autocast(workload):
                    logits = trains(batch if len(frozen) else _normalised(model, batch, device))
                    loss = F.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return workload.seconds


def _split(network: nn.Module, parts: tuple[str, ...]) -> tuple[nn.Sequential, nn.Sequential]:
    """Split a ResNet before the first of `parts`."""
    children = list(network.named_children())
    start = next(position for position, (name, _) in enumerate(children) if name in parts)
    layers = [layer for _, layer in children[:-1]] + [nn.Sequential(nn.Flatten(), children[-1][1])]
    if parts == ("fc",):
        start = len(layers) - 1
    return nn.Sequential(*layers[:start]), nn.Sequential(*layers[start:])


def _normalised(model: Normalised, X: Tensor, device: torch.device) -> Tensor:
    X = X.to(device, non_blocking=True).to(memory_format=torch.channels_last)
    return (X.float() - model.mean) / model.std


def _autocast(workload: Workload) -> torch.autocast:
    return torch.autocast(workload.task.device, torch.bfloat16, enabled=workload.task.precision == "bf16")


def _decoded(workload: Workload) -> tuple[Tensor, Tensor]:
    """Decode every image once."""
    loaded: Iterator[tuple[Tensor, int]] = map(workload.dataset().__getitem__, range(workload.task.samples))
    X, y = zip(*loaded, strict=True)
    return torch.stack(X), torch.tensor(y)
