"""A prefix is proved before it is used: against the plain pass, forward and backward, and among other samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from finetune.data.randomness import seeded, torch_generators
from finetune.features.arguments import arguments, batch_of
from finetune.features.boundary import DeclinedError
from finetune.model.calling import call
from finetune.model.freezing import trainable
from finetune.model.head_search import undisturbed

if TYPE_CHECKING:
    from finetune.features.prefix import Prefix

PLACE_COUNTS = "what is frozen gives something else in another place or size of a batch"
# Kernels for batches of other sizes round otherwise, in half precision so much.
_ROUNDING = 0.05


def prove(prefix: Prefix, model: nn.Module, example: Any) -> None:
    """Hold the replay against the plain pass, and what is stored of a sample against what its neighbours are.

    Raises:
        DeclinedError: they differ.
    """
    leaves, structure = arguments(example)
    with undisturbed(model):
        activations = prefix.compute(example)
        half = (len(activations[0]) + 1) // 2
        for kept in (slice(None, half), slice(half, None)):
            others = batch_of([_with_other_neighbours(leaf, kept) for leaf in leaves], structure)
            beside_others = prefix.compute(others)
            if not all(alike(one[kept], other[kept]) for one, other in zip(activations, beside_others, strict=True)):
                raise DeclinedError("what is frozen mixes the samples of a batch")
        if not prefix.agrees(example, activations):
            raise DeclinedError(PLACE_COUNTS)
        prefix.try_in_eval_mode(example, activations)
    plain = _outcome(model, example)
    with prefix.serving(example, lambda: activations):
        replayed = _outcome(model, example)
    if len(plain) != len(replayed) or not all(map(alike, plain, replayed)):
        raise DeclinedError("what is left out is not the same each time")


def _with_other_neighbours(leaf: Any, kept: slice) -> Any:
    """Replace all samples but those `kept` by the first of these, mirrored."""
    if not isinstance(leaf, Tensor):
        return leaf
    first = leaf[kept][:1]
    changed = torch.empty_like(leaf).copy_(first.flip(-1) if leaf.dim() > 1 else first)
    changed[kept] = leaf[kept]
    return changed


def _outcome(model: nn.Module, example: Any) -> list[Tensor]:
    """Return what a seeded step gives: outputs, gradients, buffers and random states."""
    with seeded("prefix"), undisturbed(model), torch.enable_grad():
        outputs = [leaf for leaf in tree_leaves(call(model, example)) if isinstance(leaf, Tensor)]
        weighed = [
            (output.float() * torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)).sum()
            for output in outputs
            if output.requires_grad
        ]
        if not weighed:
            raise DeclinedError("its output does not depend on anything that trains")
        gradients = torch.autograd.grad(torch.stack(weighed).sum(), list(trainable(model).values()), allow_unused=True)
        state = [*model.buffers(), *(generator.get_state() for generator in torch_generators())]
        values = [torch.empty(0) if value is None else value for value in (*outputs, *gradients, *state)]
        return [value.detach().clone() for value in values]


def alike(one: Tensor, other: Tensor) -> bool:
    """Tell whether two results are equal bit for bit; off the CPU, where kernels may add in any order, nearly so."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.device.type == "cpu":
        return one.equal(other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
    rounding = 64 * torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0
    scale = float(one.abs().amax()) if one.numel() and rounding else 0.0
    return torch.allclose(one, other, rtol=rounding, atol=rounding * scale, equal_nan=True)


def close(one: Tensor, other: Tensor) -> bool:
    """Tell whether two results are of the same computation, be it by other kernels."""
    if not one.is_floating_point():
        return one.equal(other)
    one, other = one.float(), other.float()
    scale = float(one.abs().nan_to_num(posinf=0.0).amax()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING * scale, equal_nan=True)
