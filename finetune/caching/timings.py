"""Measure a step with and without the prefix, on one batch."""

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
from finetune.data.batch import first_samples, split_batch
from finetune.devices.device import wait_for_device
from finetune.model.freezing import trainable
from finetune.model.inspection.probing import undisturbed
from finetune.model.outputs import call
from finetune.nested import tensors_of

# Work below `_SHORT` seconds is repeated and its minimum counts, because other processes disturb the measurement.
_SHORT = 0.02
_REPEATS = 3
# A pass estimated above `_LONG` seconds is extrapolated from `_FEW` samples.
_LONG = 0.1
_FEW = 4

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timings:
    """Seconds per batch.

    Attributes:
        load: Loading and preprocessing; 0 if worker processes do them during the steps.
        forward: Whole forward pass, first extrapolated from a few samples if long; 0 if not measured.
        small_forward: Forward pass of a few samples; 0 if not measured.
        frozen_share: Share of the forward pass before the first module with trainable parameters; 1 if not measured.
        prefix: Computing the prefix.
        replay: Forward pass from stored activations, including the remaining loading.
        backward: Rest of the step after the forward pass.
    """

    load: float
    forward: float
    small_forward: float = 0.0
    frozen_share: float = 1.0
    prefix: float = 0.0
    replay: float = 0.0
    backward: float = 0.0


def timed(work: Callable[[], Result], repeats: int = _REPEATS) -> tuple[float, Result]:
    """Return the duration of a call in seconds, the minimum of several calls if it is short, and its result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        wait_for_device()
        begun = time.perf_counter()
        result = work()
        wait_for_device()
        best = min(best, time.perf_counter() - begun)
        if best > _SHORT:
            break
    assert result is not None
    return best, result


def time_forward(model: nn.Module, inputs: Any, load: float) -> Timings:
    """Measure the forward pass and the share of it before the first trainable module, before a prefix is cut.

    A long pass is extrapolated from a few samples: the overhead of a small batch is then negligible, and a whole pass
    would cost a large part of the time to be saved. The model and the random state are left unchanged.
    """
    samples = next(len(tensor) for tensor in tensors_of(inputs))
    few = first_samples(inputs, samples, _FEW)
    with undisturbed(model), torch.enable_grad():
        seconds, frozen_share = timed(lambda: _frozen_share(model, few))
        whole = seconds * max(1.0, samples / _FEW)
        forward = whole if whole > _LONG else timed(lambda: (call(model, inputs),))[0]
    return Timings(load=load, forward=forward, small_forward=seconds, frozen_share=frozen_share)


def _frozen_share(model: nn.Module, inputs: Any) -> float:
    """Run the model once and return the share of the time before the first module that owns trainable parameters.

    Return 1 if no such module is called, or if it is the model itself, which may use them only at its end.
    """
    owners = [module for module in model.modules() if any(p.requires_grad for p in module.parameters(recurse=False))]
    reached: list[float] = []

    def note_time(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if not reached:
            wait_for_device()
            reached.append(time.perf_counter())
        return forward(*args, **kwargs)

    begun = time.perf_counter()
    with intercepted(() if model in owners else owners, note_time):
        call(model, inputs)
    wait_for_device()
    ended = time.perf_counter()
    return (reached[0] - begun) / (ended - begun) if reached else 1.0


def time_replay(model: nn.Module, cached: CachedBatches) -> tuple[float, float]:
    """Return the seconds of a step's forward and backward pass on the first batch, from stored activations.

    The model and the random state are left unchanged.
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
