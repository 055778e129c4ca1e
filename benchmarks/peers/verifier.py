"""Verify that a peer trained as intended: the right parameters, the right number of updates, a lower loss."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.peers.workload import PARTS, Normalised, Workload, images

_SAMPLES = 256  # samples over which loss and accuracy are computed


class Verifier:
    """Remember the state of a network before training, and report deviations from the task afterwards."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._before = {name: value.clone() for name, value in workload.network.state_dict().items()}
        self._loss = _outcome(workload)[0]

    def findings(self, updates: int) -> dict[str, Any]:
        """Return the results of training; `wrong` lists deviations from the task, and is empty if there are none."""
        loss, accuracy = _outcome(self._workload)
        state = self._workload.network.state_dict()
        moved = {name for name, value in state.items() if not torch.equal(value.cpu(), self._before[name].cpu())}
        expected = {name for name in state if name.startswith(PARTS[self._workload.task.part])}
        wrong = []
        if moved - expected:
            wrong.append(f"{len(moved - expected)} frozen tensors moved, such as {min(moved - expected)}")
        if expected - moved:
            wrong.append(f"{len(expected - moved)} tensors did not move, such as {min(expected - moved)}")
        if updates != self._workload.task.updates:
            wrong.append(f"{updates} updates instead of {self._workload.task.updates}")
        if not loss < self._loss:
            wrong.append(f"the loss went from {self._loss:.3f} to {loss:.3f}")
        trained = sum(parameter.numel() for parameter in self._workload.trained())
        return {"trained": trained, "updates": updates, "loss": loss, "accuracy": accuracy, "wrong": "; ".join(wrong)}


@contextmanager
def counted_updates() -> Iterator[list[int]]:
    """Count the steps of every torch optimizer in the single entry of the list."""
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    handle = register_optimizer_step_post_hook(add)
    try:
        yield count
    finally:
        handle.remove()


@torch.no_grad()
def _outcome(workload: Workload) -> tuple[float, float]:
    """Return the training loss and accuracy of a copy of the network, in fp32 and train mode, for all peers alike."""
    X, y = (part[:_SAMPLES] for part in images(workload.task.samples, workload.task.size))
    model = Normalised(copy.deepcopy(workload.network), PARTS[workload.task.part], autocast=False).train()
    logits = torch.cat([model(batch.to(workload.device)).cpu() for batch in X.split(workload.task.batch_size)])
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())
