"""Try out a model without side effects, and find inputs that it accepts.

Example inputs are guessed from the first layer that states what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from finetune.devices.device import device_types
from finetune.devices.generators import generators_restored
from finetune.errors import ArgumentError, whole_number
from finetune.model.families import family_of
from finetune.model.freezing import eval_mode, modes_restored, train_mode
from finetune.model.inspection.input_search import failure, search
from finetune.model.outputs import call
from finetune.model.patterns import check_initialized
from finetune.nested import tensors_of
from finetune.threads.locks import GENERATORS

# Side lengths, those most common in published models first. The first that runs is used.
_SIDES = (224, 32, 64, 28, 128, 256, 299, 384, 16, 8)
_LENGTHS = (256, 16, 64, 1024, 16000)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Turn autocast off. Its cache hides the weights that a recorded forward pass reads."""
    with ExitStack() as contexts:
        for device in device_types():
            if torch.is_autocast_enabled(device):
                contexts.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore modes, buffers and the random state on exit."""
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    with modes_restored(model), GENERATORS.held(), generators_restored():
        try:
            yield
        finally:
            with torch.no_grad():
                for own, name, buffer, value in buffers:
                    own[name] = buffer  # the model may have put another tensor in its place
                    # An unchanged buffer keeps its version counter, from which others detect changes.
                    if not buffer.is_meta and not torch.equal(buffer, value):
                        buffer.copy_(value)


def attempt(
    run: Callable[[nn.Module, Any], Any], model: nn.Module, inputs: Any, mode: Callable[[nn.Module], None]
) -> Any | None:
    """Return `run(model, inputs)` in the given mode, without gradients; None if it raises."""
    mode(model)
    try:
        with torch.no_grad():
            return run(model, inputs)
    except Exception:  # models raise anything on a shape they were not built for
        return None


def accepted_example(model: nn.Module, given: Any = None) -> Any:
    """Return an input that the model accepts: `given`, or else the first guess that works; None if none does.

    Inputs that also work in train mode come first: auxiliary heads run only in that mode and may need
    larger images than the rest of the model.
    """
    if given is None:
        check_initialized(model)  # a guess would settle the shapes of lazy layers
    fallback = None
    with undisturbed(model):
        for example in example_inputs(model) if given is None else (given,):
            if attempt(call, model, example, eval_mode) is None:
                continue
            if attempt(call, model, example, train_mode) is not None:
                return example
            fallback = example if fallback is None else fallback
        if fallback is None and given is None:
            eval_mode(model)
            return search(model, _sample, samples=2)
    return fallback


def given_example(model: nn.Module, example: Any) -> Any:
    """Return the user's example as inputs of two samples or more that `model` accepts.

    Args:
        model: The model.
        example: Inputs of one or more samples, or one sample without the batch dimension: a tensor or array, or a
            tuple or mapping of them.

    Raises:
        ArgumentError: If the model does not accept it.
    """
    like = next(model.parameters(), None)
    inputs = tree_map(
        lambda value: _placed(torch.as_tensor(value), like) if hasattr(value, "shape") else value, example
    )
    with undisturbed(model):
        eval_mode(model)
        for batch in (inputs, _each(inputs, lambda value: value.unsqueeze(0))):
            samples = next((len(tensor) for tensor in tensors_of(batch) if tensor.dim()), 0)
            error = failure(model, batch, samples)
            if error is None:
                return _each(batch, lambda value: torch.cat([value, value])) if samples == 1 else batch
    raise ArgumentError(f"{type(model).__name__} does not accept the example: {error}. Pass inputs as in training.")


def _each(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return tree_map(lambda value: change(value) if isinstance(value, Tensor) else value, inputs)


def example_inputs(model: nn.Module, samples: int = 2) -> Iterator[Any]:
    """Yield inputs of `samples` samples that `model` may accept, most likely first.

    The order is the model's own `example_input_array` (as in Lightning), the examples of its family, and shapes
    that fit its first layer: `[N, C, H, W]` for a 2-d convolution, `[N, F]` or `[N, T, F]` for a linear layer,
    integer `[N, T]` for an embedding, and so on.
    """
    given = getattr(model, "example_input_array", None)
    if given is not None:
        yield given
    like = next(model.parameters(), None)
    family = family_of(model)
    for example in family.examples(model, samples):
        yield tree_map(partial(_placed, like=like), example)
    first = _first_layer(model)
    channels, size = family.built_for(model)
    stated = [(channels, *size)] if channels is not None and size is not None else []
    for shape in dict.fromkeys([*stated, *_shapes(first)]):
        yield _sample(first, (samples, *shape))


def samples_of_size(model: nn.Module, size: Sequence[int], samples: int = 2) -> Tensor:
    """Return random samples of shape `size` and of the type that the model's first layer reads.

    Raises:
        ArgumentError: If `size` is not a sequence of positive integers.
    """
    if not isinstance(size, (Sequence, np.ndarray)) or isinstance(size, str):
        raise ArgumentError(
            f"Expected input_size to be the shape of one sample, such as (3, 224, 224), but got {size!r}."
        )
    sides = [whole_number("each side of input_size", side) for side in size]
    return _sample(_first_layer(model), (samples, *sides))


def _first_layer(model: nn.Module) -> nn.Module:
    """Return the first layer whose input shape is known, or else the model."""
    return next((module for module in model.modules() if _shapes(module)), model)


def _shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    """Return shapes without the batch dimension that `layer` accepts, none if they are unknown."""
    if isinstance(layer, nn.Conv2d):
        return [(layer.in_channels, side, side) for side in _SIDES]
    if isinstance(layer, nn.Conv1d):
        return [(layer.in_channels, length) for length in _LENGTHS]
    if isinstance(layer, nn.Conv3d):
        return [(layer.in_channels, 16, side, side) for side in (112, 224, 32)]
    if isinstance(layer, nn.Linear):
        return [(layer.in_features,), (16, layer.in_features)]
    if isinstance(layer, nn.RNNBase):
        return [(16, layer.input_size), (layer.input_size,)]
    if isinstance(layer, nn.MultiheadAttention):
        return [(16, layer.embed_dim)]
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return [(layer.num_features,), *((layer.num_features, side, side) for side in _SIDES)]
    if isinstance(layer, nn.Embedding):
        return [(16,), ()]
    return []


def _sample(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)  # leaves the global random state alone
    if isinstance(layer, nn.Embedding):
        values = torch.randint(layer.num_embeddings, shape, generator=generator)
    else:
        values = torch.randn(shape, generator=generator)
    return _placed(values, next(layer.parameters(), None))


def _placed(values: Tensor, like: Tensor | None) -> Tensor:
    """Move values to the device of a parameter, and floats to its dtype."""
    if like is None:
        return values
    return values.to(like.device, like.dtype) if values.is_floating_point() else values.to(like.device)
