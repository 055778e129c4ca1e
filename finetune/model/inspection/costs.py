"""What one forward pass costs: output shapes, multiply-adds, and the activations kept for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from finetune.errors import ArgumentError
from finetune.model.freezing import eval_mode, single_sample, train_mode
from finetune.model.inspection.forward_graph import output_shapes, storage_of
from finetune.model.inspection.probing import undisturbed
from finetune.model.outputs import call
from finetune.nested import tensors_of


@dataclass(frozen=True)
class Costs:
    """What one sample costs.

    Attributes:
        sizes: the size of each tensor of one sample that was tried.
        shapes: of every module's output, by full name, without the batch.
        multiply_adds: of a forward pass in eval mode.
        activations: bytes that autograd keeps for the backward pass of a training step; None if the model
            did not run in train mode.
    """

    sizes: tuple[tuple[int, ...], ...]
    shapes: dict[str, tuple[int, ...]]
    multiply_adds: int
    activations: int | None


def measure(model: nn.Module, inputs: Any) -> Costs:
    """Run `model` on `inputs` once in eval mode and once as in training, and return what one sample costs.

    `inputs` is a batch: a tensor, a tuple of positional arguments, or a mapping of keyword ones, all with
    the samples first. Two samples are better than one, which batch norms in train mode cannot use. What
    the samples share, such as the statistics of a batch, counts by its share. Modes, buffers, gradients
    and the random state are as before.

    Multiply-adds are those of convolutions, matrix products, attention and recurrent layers, as papers
    count them. Not counted: element-wise operations, norms, pooling, embeddings, biases, products of a
    matrix and a single vector, `nn.Bilinear`, Fourier transforms, sparse and quantised products, and
    custom kernels.

    Activations are the tensors that autograd saves in the model's own precision, the input among them,
    each memory once, without parameters, buffers and sparse tensors. What lies before the first
    trainable parameter keeps none.

    Raises:
        ArgumentError: the model does not accept the inputs.
    """
    if isinstance(original := getattr(model, "_orig_mod", None), nn.Module):  # what torch.compile compiled
        costs = measure(original, inputs)
        return replace(costs, shapes={f"_orig_mod.{name}": shape for name, shape in costs.shapes.items()})
    tensors = tensors_of(inputs)
    sizes = tuple(tuple(tensor.shape[1:]) for tensor in tensors)
    samples = tensors[0].shape[0] if tensors and tensors[0].dim() else 1
    with undisturbed(model):
        eval_mode(model)
        try:
            with _fused_layers_opened(), FlopCounterMode(display=False) as counter:
                shapes = output_shapes(model, inputs)
        except Exception as error:
            tried = ", ".join(str(list(size)) for size in sizes)
            raise ArgumentError(f"{type(model).__name__} does not accept an input of size {tried}: {error}") from error
        train_mode(model)
        kept = _kept_for_backward(model, inputs, samples)
    multiply_adds = counter.get_total_flops() // 2 // max(1, samples)
    return Costs(sizes, shapes, multiply_adds, None if kept is None else kept // max(1, samples))


@contextmanager
def _fused_layers_opened() -> Iterator[None]:
    """Have layers that some devices run as one kernel run as the products they are made of, which are counted."""
    mha, mkldnn = torch.backends.mha, torch.backends.mkldnn
    fast_encoders, one_dnn = mha.get_fastpath_enabled(), mkldnn.enabled
    mha.set_fastpath_enabled(False)  # encoder layers in eval mode
    mkldnn.set_flags(_enabled=False)  # LSTMs on a CPU
    try:
        with torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(fast_encoders)
        mkldnn.set_flags(_enabled=one_dnn)


def _kept_for_backward(model: nn.Module, inputs: Any, samples: int) -> int | None:
    """Return the bytes of what autograd saves in one forward pass; None if the pass fails."""
    lasting = {storage_of(tensor) for tensor in chain(model.parameters(), model.buffers())}
    given = {storage_of(tensor): tensor.nbytes for tensor in tensors_of(inputs)}  # views of a whole data set, maybe
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        alone = tensor.detach()  # the tensor itself would hold its own graph
        if alone.layout is torch.strided:
            kept.setdefault(storage_of(alone), alone)  # an id is only unique while its memory lives
        return alone

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(saved_tensors_hooks(keep, lambda tensor: tensor))
        if samples == 1:
            stack.enter_context(single_sample(model))
        try:
            call(model, inputs)
        except Exception:  # what runs in eval mode only has no training step
            return None
    return sum(
        given.get(storage, tensor.untyped_storage().nbytes())
        for storage, tensor in kept.items()
        if storage not in lasting
    )
