"""What a step costs with and without the prefix: measured, on one batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from finetune.data.base import split_batch
from finetune.data.device import map_tensors, tensors_of
from finetune.features.cached import CachedBatches
from finetune.model.calling import call
from finetune.model.freezing import trainable
from finetune.model.head_search import undisturbed

# What takes less is measured again, and the least counts: others run on this machine too.
_SHORT = 0.02
_REPEATS = 3
# A batch that takes longer is judged by a few samples.
_LONG = 0.1
_FEW = 4

Result = TypeVar("Result")


@dataclass(frozen=True)
class Costs:
    """Seconds for one batch.

    Attributes:
        load: to read, decode and prepare it; 0 where other processes do that, beside the steps.
        plain: a whole forward pass, told by a few samples at first if it takes long; 0 if it was not measured.
        few: a forward pass of a few samples; 0 if it was not measured.
        compute: to run the prefix on it.
        served: to take it from the store and pass it forward, loading included where that is still done.
        backward: what a step takes beyond the forward pass.
    """

    load: float
    plain: float
    few: float = 0.0
    compute: float = 0.0
    served: float = 0.0
    backward: float = 0.0


def timed(work: Callable[[], Result], repeats: int = _REPEATS) -> tuple[float, Result]:
    """Return the seconds that some work takes, the least of a few times if it is short, and its result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        _wait_for_device()
        begun = time.perf_counter()
        result = work()
        _wait_for_device()
        best = min(best, time.perf_counter() - begun)
        if best > _SHORT:
            break
    assert result is not None
    return best, result


def forward_seconds(model: nn.Module, inputs: Any) -> tuple[float, float]:
    """Return the seconds of a whole forward pass, and of one of a few samples.

    The model and the random state stay as they are.

    Where that takes long, it is told by a few of the samples: then what a small batch costs beyond its
    share is little, and the pass would be a good part of all that is to be saved.
    """
    samples = next(len(tensor) for tensor in tensors_of(inputs))
    few = map_tensors(lambda tensor: tensor[:_FEW], inputs, None)
    with undisturbed(model), torch.enable_grad():
        seconds = timed(lambda: (call(model, few),))[0]
        whole = seconds * max(1.0, samples / _FEW)
        return whole if whole > _LONG else timed(lambda: (call(model, inputs),))[0], seconds


def replay_seconds(model: nn.Module, cached: CachedBatches) -> tuple[float, float]:
    """Return the seconds of a step on the first batch from what is stored of it: forward, and backward.

    The model and the random state stay as they are.
    """

    def served() -> tuple[Tensor, ...]:
        batch = next(cached.epoch(0))
        with cached.serving(batch):
            leaves = tree_leaves(call(model, split_batch(batch)[0]))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad)

    with undisturbed(model), torch.enable_grad():
        forward, results = timed(served)
        if not cached.shuffle or not results:  # validation data
            return forward, 0.0
        total = torch.stack([result.float().sum() for result in results]).sum()
        parameters = list(trainable(model).values())
        return forward, timed(lambda: torch.autograd.grad(total, parameters, allow_unused=True), repeats=1)[0]


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
