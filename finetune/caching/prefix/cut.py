"""A prefix is sought in a model, and proved before it is used: against the plain pass, and among other samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from finetune.caching.prefix.agreement import alike
from finetune.caching.prefix.arguments import arguments, batch_of
from finetune.caching.prefix.boundary import DeclinedError, find_boundary
from finetune.caching.prefix.prefix import Prefix
from finetune.caching.prefix.trace import trace
from finetune.data.randomness import seeded, torch_generators
from finetune.model.freezing import trainable
from finetune.model.inspection.probing import undisturbed
from finetune.model.outputs import call

PLACE_COUNTS = "what is frozen gives something else in another place or size of a batch"

# So many samples are traced and proved on: a trace holds all intermediate results of its pass.
_SAMPLES = 4


def cut_prefix(model: nn.Module, inputs: Any) -> Prefix | str:
    """Split `model` at its frozen boundary; return its prefix, or in one line why it cannot be split.

    What trains is what has `requires_grad` now; every module must be in the mode it trains in.
    `inputs` is a batch of at least 2 samples, the leading dimension of each tensor: a tensor, a tuple of
    positional arguments or a mapping of keyword ones. A few of its samples pass through the model
    some times, forward and backward; the model and the random state stay as they are.
    """
    refusals = []
    try:
        few = _few_samples(model, inputs)
        for eager in (False, True):
            try:
                return _cut(model, few, eager)
            except DeclinedError as reason:
                refusals.append(str(reason))
    except DeclinedError as reason:
        return str(reason)
    return refusals[0]


def _few_samples(model: nn.Module, inputs: Any) -> Any:
    """Check what can be checked without running the model; return the first samples of the batch.

    Raises:
        DeclinedError: there is nothing to split, or nothing to split it by.
    """
    leaves, structure = arguments(inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    lengths = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    if len(lengths) != 1:
        raise DeclinedError("its inputs are not tensors with one leading dimension of samples")
    if lengths.pop() < 2:
        raise DeclinedError("its batch has one sample, and two are needed to see which dimension is that of samples")
    if any(tensor.requires_grad for tensor in tensors):
        raise DeclinedError("a gradient of its inputs is asked for")
    if not trainable(model):
        raise DeclinedError("nothing trains")
    return batch_of([leaf[:_SAMPLES] if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)


def _cut(model: nn.Module, example: Any, eager: bool) -> Prefix:
    leaves, structure = arguments(example)
    samples = next(leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor))
    more = [torch.cat([leaf, leaf[:1]]) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    try:
        with undisturbed(model):
            one = trace(model, *tree_unflatten(leaves, structure))
            other = trace(model, *tree_unflatten(more, structure))
        prefix = Prefix(model, find_boundary(one, other, samples, eager), example)
        del one, other  # all intermediate results
        _prove(prefix, model, example)
        prefix.trust()
        return prefix
    except (DeclinedError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever the model raises on a batch or a tensor that it was not made for
        said = str(error).splitlines() or [""]
        raise DeclinedError(f"it fails where parts are left out ({type(error).__name__}: {said[0][:120]})") from error


def _prove(prefix: Prefix, model: nn.Module, example: Any) -> None:
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
    with prefix.serving(example, activations):
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
