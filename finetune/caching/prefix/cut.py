"""Cut a model's frozen prefix, and verify it against the plain pass and among other samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from finetune.caching.declined import Declined, DeclinedError
from finetune.caching.prefix.agreement import equal_results
from finetune.caching.prefix.arguments import flatten_inputs, unflatten_inputs
from finetune.caching.prefix.boundary import find_boundary
from finetune.caching.prefix.prefix import Prefix
from finetune.caching.prefix.trace import trace
from finetune.data.randomness import seeded
from finetune.devices.generators import torch_generators
from finetune.model.freezing import trainable
from finetune.model.inspection.probing import undisturbed
from finetune.model.outputs import call

POSITION_MATTERS = "the frozen layers' result for a sample depends on its position or on the batch size"

# Number of samples to trace and verify on, small because a trace holds all intermediate results of its pass.
_SAMPLES = 4


def cut_prefix(model: nn.Module, inputs: Any) -> Prefix | Declined:
    """Split a model at its frozen boundary.

    A few samples pass through the model several times, forward and backward; the model and the random state are left
    unchanged.

    Args:
        model: Model with `requires_grad` set as in training, and every module in the mode that it trains in.
        inputs: Batch of at least 2 samples, along the first dimension of each tensor: a tensor, a tuple of positional
            arguments or a mapping of keyword arguments.

    Returns:
        The prefix, or the reason why the model cannot be split.
    """
    leaves, structure = flatten_inputs(inputs)
    unfit = _declined_before_running(model, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
    if unfit:
        return unfit
    few = unflatten_inputs([leaf[:_SAMPLES] if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
    reasons = []
    for eager in (False, True):
        try:
            return _cut(model, few, eager)
        except DeclinedError as error:
            reasons.append(str(error))
    return Declined(reasons[0])


def _declined_before_running(model: nn.Module, tensors: list[Tensor]) -> Declined | None:
    """Return the reason that a model with these input tensors cannot be split, if it is known without running it."""
    lengths = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    if len(lengths) != 1:
        return Declined("the model's inputs are not tensors that share a first dimension of samples")
    if lengths.pop() < 2:
        return Declined("the batch has one sample, and finding the sample dimension takes two")
    if any(tensor.requires_grad for tensor in tensors):
        return Declined("the inputs require a gradient")
    if not trainable(model):
        return Declined("no parameter is trainable")
    return None


def _cut(model: nn.Module, example: Any, eager: bool) -> Prefix:
    leaves, structure = flatten_inputs(example)
    samples = next(leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor))
    more = [torch.cat([leaf, leaf[:1]]) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    try:
        with undisturbed(model):
            one = trace(model, *tree_unflatten(leaves, structure))
            other = trace(model, *tree_unflatten(more, structure))
        prefix = Prefix(model, find_boundary(one, other, samples=samples, eager=eager), example)
        del one, other  # free all intermediate results
        _verify(prefix, model, example)
        prefix.strict = False
        return prefix
    except (DeclinedError, KeyboardInterrupt):
        raise
    except Exception as error:  # the model may raise anything on unexpected inputs
        said = str(error).splitlines() or [""]
        reason = f"{type(error).__name__}: {said[0][:120]}"
        raise DeclinedError(f"the model fails when layers are skipped ({reason})") from error


def _verify(prefix: Prefix, model: nn.Module, example: Any) -> None:
    """Compare a replay with the plain pass, and a sample's activations with those among other samples.

    Raises:
        DeclinedError: If the results differ.
    """
    leaves, structure = flatten_inputs(example)
    with undisturbed(model):
        activations = prefix.compute(example)
        half = (len(activations[0]) + 1) // 2
        for kept in (slice(None, half), slice(half, None)):
            others = unflatten_inputs([_with_other_neighbors(leaf, kept) for leaf in leaves], structure)
            beside_others = prefix.compute(others)
            pairs = zip(activations, beside_others, strict=True)
            if not all(equal_results(one[kept], other[kept]) for one, other in pairs):
                raise DeclinedError("the frozen layers mix the samples of a batch")
        if not prefix.agrees(example, activations):
            raise DeclinedError(POSITION_MATTERS)
        prefix.try_in_eval_mode(example, activations)
    plain = _outcome(model, example)
    with prefix.serving(example, activations):
        replayed = _outcome(model, example)
    if len(plain) != len(replayed) or not all(map(equal_results, plain, replayed)):
        raise DeclinedError("the frozen layers' result is not the same each time")


def _with_other_neighbors(leaf: Any, kept: slice) -> Any:
    """Replace all samples outside `kept` with the first kept sample, mirrored."""
    if not isinstance(leaf, Tensor):
        return leaf
    first = leaf[kept][:1]
    changed = torch.empty_like(leaf).copy_(first.flip(-1) if leaf.dim() > 1 else first)
    changed[kept] = leaf[kept]
    return changed


def _outcome(model: nn.Module, example: Any) -> list[Tensor]:
    """Return the outputs, gradients, buffers and random states of a seeded step."""
    with seeded("prefix"), undisturbed(model), torch.enable_grad():
        outputs = [leaf for leaf in tree_leaves(call(model, example)) if isinstance(leaf, Tensor)]
        weighed = [
            (output.float() * torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)).sum()
            for output in outputs
            if output.requires_grad
        ]
        if not weighed:
            raise DeclinedError("the output does not depend on any trainable parameter")
        gradients = torch.autograd.grad(torch.stack(weighed).sum(), list(trainable(model).values()), allow_unused=True)
        state = [*model.buffers(), *(generator.get_state() for generator in torch_generators())]
        values = [torch.empty(0) if value is None else value for value in (*outputs, *gradients, *state)]
        return [value.detach().clone() for value in values]
