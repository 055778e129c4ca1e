"""What a step costs with and without the prefix: measured, on one batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from finetune.caching.cached_batches import CachedBatches
from finetune.caching.prefix.trace import intercepted
from finetune.data.sources.base import split_batch
from finetune.model.freezing import trainable
from finetune.model.inspection.probing import undisturbed
from finetune.model.outputs import call
from finetune.nested import map_tensors, tensors_of

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
        ahead: the share of a forward pass that comes before the first module with parameters that train; 1 if it was
            not measured.
        compute: to run the prefix on it.
        served: to take it from the store and pass it forward, loading included where that is still done.
        backward: what a step takes beyond the forward pass.
    """

    load: float
    plain: float
    few: float = 0.0
    ahead: float = 1.0
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


def forward_costs(model: nn.Module, inputs: Any, load: float) -> Costs:
    """Return what is known before a prefix is sought: of loading, a forward pass, and what comes before what trains.

    The model and the random state stay as they are.

    Where a pass takes long, it is told by a few of the samples: then what a small batch costs beyond its
    share is little, and the pass would be a good part of all that is to be saved.
    """
    samples = next(len(tensor) for tensor in tensors_of(inputs))
    few = map_tensors(lambda tensor: tensor[:_FEW], inputs, None)
    with undisturbed(model), torch.enable_grad():
        seconds, ahead = timed(lambda: _share_ahead(model, few))
        whole = seconds * max(1.0, samples / _FEW)
        plain = whole if whole > _LONG else timed(lambda: (call(model, inputs),))[0]
    return Costs(load, plain, seconds, ahead)


def _share_ahead(model: nn.Module, inputs: Any) -> float:
    """Run the model once; return the share of that time before the first module with parameters of its own that train.

    All of it, where that is the model itself, which may use them at its end, or where no such module is called.
    """
    owners = [module for module in model.modules() if any(p.requires_grad for p in module.parameters(recurse=False))]
    reached: list[float] = []

    def noting(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if not reached:
            _wait_for_device()
            reached.append(time.perf_counter())
        return forward(*args, **kwargs)

    begun = time.perf_counter()
    with intercepted(() if model in owners else owners, noting):
        call(model, inputs)
    _wait_for_device()
    ended = time.perf_counter()
    return (reached[0] - begun) / (ended - begun) if reached else 1.0


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
