"""Bytes that a process sends into an update's sums, beside those of the gradients that have to be summed.

A ResNet-18 in 2 processes, at three freeze states. DistributedDataParallel's buckets are counted by a hook, all other
sums where torch makes them. With accumulation, only the last batch of a window may sum gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from benchmarks.rows import Row
from finetune import FineTuner
from finetune.callbacks import Callback
from finetune.distributed.replicas import Replicas
from finetune.training.run import Run
from tests.helpers.worlds import in_processes

TITLE = "Traffic"

_FROZEN = {"head": 6, "last stage": 5, "all layers": 0}  # of the layers below, by the trained part
_LAYERS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
_ALL_REDUCE = dist.all_reduce
_SLACK = 4096  # bytes beside the gradients: weights of samples, the flag of a signal, the loss


def trials(*, sample: bool) -> Iterator[tuple[str, ...]]:
    """Yield the trained part and the batches per update."""
    for trained in ("head",) if sample else _FROZEN:
        for batches in ("1", "3"):
            yield trained, batches


def run(trained: str, batches: str) -> Row:
    """Count the bytes of one update in the middle of a run."""

    def train(rank: int) -> tuple[int, int, int]:
        torch.manual_seed(0)
        tuner = FineTuner("resnet18", weights=None, device="cpu", gradient_accumulation_steps=int(batches))
        tuner.replace_head(3)
        for pattern in _LAYERS[: _FROZEN[trained]]:
            tuner.freeze(pattern)
        counted = _Counted()
        images = torch.randn(8 * int(batches), 3, 32, 32), torch.arange(8 * int(batches)) % 3
        tuner.fit(images, epochs=4, batch_size=4, cache=False, callbacks=[counted], progress=False)
        needed = sum(p.numel() * p.element_size() for p in tuner.model.parameters() if p.requires_grad)
        return counted.gradients, counted.sums - counted.gradients, needed

    gradients, others, needed = in_processes(2, train)[0]
    return {"gradients": gradients, "others": others, "needed": needed, "errors": []}


def wrong(row: Row) -> bool:
    """Return whether a trial shows a fault."""
    return bool(row["gradients"] != row["needed"] or row["others"] > _SLACK)


def table(rows: Sequence[Row]) -> str:
    """Return the bytes by trained part."""
    lines = ["| trained | batches per update | gradients to sum, bytes | summed | other sums |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        counts = " | ".join(f"{row[name]:,}" for name in ("needed", "gradients", "others"))
        lines.append(f"| {row['key'][1]} | {row['key'][2]} | {counts} |")
    return "\n".join(lines)


class _Counted(Callback):
    """Count the bytes of the third epoch's only update."""

    def __init__(self) -> None:
        self.gradients = self.sums = 0
        self._counts = False

    def on_epoch_begin(self, run: Run) -> None:
        if run.epoch == 1:
            assert isinstance(run.replicas, Replicas)
            assert run.replicas._parallel is not None
            run.replicas._parallel.register_comm_hook(None, lambda _, bucket: self._hook(bucket))
            dist.all_reduce = self._all_reduce
        self._counts = run.epoch == 2

    def on_step_end(self, run: Run) -> None:
        self._counts = False

    def _all_reduce(self, tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        self.sums += self._counts * tensor.numel() * tensor.element_size()
        return _ALL_REDUCE(tensor, *arguments, **options)

    def _hook(self, bucket: Any) -> Any:
        buffer = bucket.buffer()
        self.gradients += self._counts * buffer.numel() * buffer.element_size()
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # sums it by _all_reduce
