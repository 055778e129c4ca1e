"""Measure the costs of one sample: output shapes, multiply-adds, and activations kept for the backward pass."""

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

from finetune.errors import ArgumentError
from finetune.model.freezing import eval_mode, single_sample, train_mode
from finetune.model.inspection.forward_graph import output_shapes, storage_of
from finetune.model.inspection.probing import undisturbed
from finetune.model.outputs import call
from finetune.nested import tensors_of


@dataclass(frozen=True)
class SampleCosts:
    """Costs of one sample.

    Attributes:
        sizes: Shape of each input tensor, without the batch dimension.
        shapes: Output shape of every module by full name, without the batch dimension.
        multiply_adds: Multiply-adds of a forward pass in eval mode.
        activations: Bytes that autograd keeps for the backward pass of a training step, None if the model did not
            run in train mode.

    Example:
        >>> costs = measure_costs(nn.Linear(4, 2), torch.randn(2, 4))
        >>> costs.multiply_adds, costs.activations
        (8, 16)
    """

    sizes: tuple[tuple[int, ...], ...]
    shapes: dict[str, tuple[int, ...]]
    multiply_adds: int
    activations: int | None


def measure_costs(model: nn.Module, inputs: Any) -> SampleCosts:
    """Run `model` once in eval mode and once as in training, and return the costs of one sample.

    Modes, buffers, gradients and the random state are restored.

    Multiply-adds are counted for convolutions, matrix products, attention and recurrent layers, as papers
    do. Not counted: element-wise operations, norms, pooling, embeddings, biases, products of a matrix and a
    single vector, `nn.Bilinear`, Fourier transforms, sparse and quantized products, and custom kernels.

    Activations are the tensors that autograd saves, in the model's own precision and including the input.
    Memory that several tensors share counts once; parameters, buffers and sparse tensors do not count. Layers
    before the first trainable parameter keep no activations. Memory that the samples share, such as batch
    statistics, is divided among them.

    Args:
        inputs: A batch: a tensor, a tuple of positional arguments, or a mapping of keyword arguments, with the
            samples along the first dimension. Preferably two samples, because batch norms in train mode may not
            accept one.

    Raises:
        ArgumentError: If the model does not accept the inputs.
    """
    from torch.utils.flop_counter import FlopCounterMode  # loads triton, so only on use

    if isinstance(original := getattr(model, "_orig_mod", None), nn.Module):  # compiled by torch.compile
        costs = measure_costs(original, inputs)
        return replace(costs, shapes={f"_orig_mod.{name}": shape for name, shape in costs.shapes.items()})
    tensors = tensors_of(inputs)
    sizes = tuple(tuple(tensor.shape[1:]) for tensor in tensors)
    samples = tensors[0].shape[0] if tensors and tensors[0].dim() else 1
    with undisturbed(model):
        eval_mode(model)
        try:
            with _unfused_layers(), FlopCounterMode(display=False) as counter:
                shapes = output_shapes(model, inputs)
        except Exception as error:
            tried = ", ".join(str(list(size)) for size in sizes)
            raise ArgumentError(f"{type(model).__name__} does not accept an input of size {tried}: {error}") from error
        train_mode(model)
        kept = _kept_for_backward(model, inputs, samples)
    multiply_adds = counter.get_total_flops() // 2 // max(1, samples)
    return SampleCosts(sizes, shapes, multiply_adds, None if kept is None else kept // max(1, samples))


@contextmanager
def _unfused_layers() -> Iterator[None]:
    """Run fused layers as separate matrix products, which the counter sees."""
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
    """Return the bytes that autograd saves in one forward pass, None if the pass fails."""
    permanent = {storage_of(tensor) for tensor in chain(model.parameters(), model.buffers())}
    given = {storage_of(tensor): tensor.nbytes for tensor in tensors_of(inputs)}  # may be views of a whole dataset
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        alone = tensor.detach()  # the tensor itself would keep its graph alive
        if alone.layout is torch.strided:
            kept.setdefault(storage_of(alone), alone)  # an id is unique only while its memory is alive
        return alone

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(saved_tensors_hooks(keep, lambda tensor: tensor))
        if samples == 1:
            stack.enter_context(single_sample(model))
        try:
            call(model, inputs)
        except Exception:  # the model runs in eval mode only
            return None
    return sum(
        given.get(storage, tensor.untyped_storage().nbytes())
        for storage, tensor in kept.items()
        if storage not in permanent
    )
