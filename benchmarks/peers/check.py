"""Whether a peer did the work: what moved, how often, and what was learned."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.peers.work import PARTS, Normalised, Work, pictures

_LOOKED_AT = 256  # samples, for loss and accuracy at the end


class Witness:
    """Remembers a network as it is, and later says what training did to it and what is wrong with that."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._before = {name: value.clone() for name, value in work.network.state_dict().items()}
        self._loss = _outcome(work)[0]

    def findings(self, updates: int) -> dict[str, Any]:
        """Return what was found; `wrong` is empty where the work was done."""
        loss, accuracy = _outcome(self._work)
        state = self._work.network.state_dict()
        moved = {name for name, value in state.items() if not torch.equal(value.cpu(), self._before[name].cpu())}
        expected = {name for name in state if name.startswith(PARTS[self._work.task.part])}
        wrong = []
        if moved - expected:
            wrong.append(f"{len(moved - expected)} frozen tensors moved, such as {min(moved - expected)}")
        if expected - moved:
            wrong.append(f"{len(expected - moved)} tensors did not move, such as {min(expected - moved)}")
        if updates != self._work.task.updates:
            wrong.append(f"{updates} updates of {self._work.task.updates}")
        if not loss < self._loss:
            wrong.append(f"the loss went from {self._loss:.3f} to {loss:.3f}")
        trained = sum(parameter.numel() for parameter in self._work.trained())
        return {"trained": trained, "updates": updates, "loss": loss, "accuracy": accuracy, "wrong": "; ".join(wrong)}


@contextmanager
def counted_updates() -> Iterator[list[int]]:
    """Count the steps of every optimizer of torch; the count is the one entry of the list."""
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    handle = register_optimizer_step_post_hook(add)
    try:
        yield count
    finally:
        handle.remove()


@torch.no_grad()
def _outcome(work: Work) -> tuple[float, float]:
    """Return the training loss and accuracy of a copy of the network, in fp32 and train mode, by one code for all."""
    X, y = (part[:_LOOKED_AT] for part in pictures(work.task.samples, work.task.size))
    model = Normalised(copy.deepcopy(work.network), PARTS[work.task.part], autocast=False).train()
    logits = torch.cat([model(batch.to(work.device)).cpu() for batch in X.split(work.task.batch_size)])
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())
