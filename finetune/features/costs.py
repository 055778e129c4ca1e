"""What a step costs with and without the prefix: measured, on one batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from finetune.data.base import split_batch
from finetune.features.prefix import Prefix
from finetune.model.calling import call
from finetune.model.freezing import trainable
from finetune.model.head_search import undisturbed

# What takes less is measured again, and the least counts: others run on this machine too.
_SHORT = 0.02
_REPEATS = 3


@dataclass(frozen=True)
class Costs:
    """Seconds for one batch.

    Attributes:
        load: to read, decode and prepare it; 0 where that is done by other processes, beside the steps.
        compute: to run the prefix on it.
        plain: a whole forward pass; 0 if it was not measured.
        served: a forward pass from what is stored.
        backward: what a step takes beyond the forward pass.
    """

    load: float
    compute: float
    plain: float
    served: float
    backward: float


def measured(
    model: nn.Module,
    prefix: Prefix,
    batch: Any,
    load: float,
    stored: tuple[Tensor, ...] | None,
    *,
    trains: bool,
    whole: bool,
) -> tuple[Costs, tuple[Tensor, ...]]:
    """Measure a batch; return what is stored of it too, as that may be computed for it.

    The model and the random state stay as they are.

    Args:
        model: in the mode that it trains in.
        prefix: of the model.
        batch: of which the prefix accepts the inputs.
        load: seconds that it took to load.
        stored: what is stored of it already, so that the prefix need not run.
        trains: a step is a backward pass too.
        whole: measure the whole forward pass.
    """
    inputs = split_batch(batch)[0]
    leaf = next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))

    def timed(work: Callable[[], Any], repeats: int = _REPEATS) -> tuple[float, Any]:
        synchronize = torch.cuda.synchronize if leaf.is_cuda else nullcontext
        best = float("inf")
        for _ in range(repeats):
            synchronize()
            begun = time.perf_counter()
            result = work()
            synchronize()
            best = min(best, time.perf_counter() - begun)
            if best > _SHORT:
                break
        return best, result

    def outputs() -> list[Tensor]:
        return [leaf for leaf in tree_leaves(call(model, inputs)) if isinstance(leaf, Tensor) and leaf.requires_grad]

    def served() -> list[Tensor]:
        with prefix.serving(inputs, activations):
            return outputs()

    with undisturbed(model), torch.enable_grad():
        compute, activations = (0.0, stored) if stored else timed(lambda: prefix.compute(inputs), repeats=1)
        plain = timed(outputs)[0] if whole else 0.0
        replay, results = timed(served)
        backward = 0.0
        if trains and results:
            of_all = torch.stack([result.float().sum() for result in results]).sum()
            parameters = list(trainable(model).values())
            backward = timed(lambda: torch.autograd.grad(of_all, parameters, allow_unused=True), repeats=1)[0]
    return Costs(load, compute, plain, replay, backward), activations
