"""Search for inputs that a model accepts, guided by its layers and its errors.

A model for one size fails on any other, and most errors state what it expected: "mat1 and mat2 shapes cannot be
multiplied (2x512 and 800x10)". The next guess follows from it.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from finetune.model.outputs import call, logits_of

_SIDES = (32, 64, 96, 16, 28, 128, 224, 48, 8)
_MOST_ATTEMPTS = 80
_LARGEST = {1: 65536, 2: 512, 3: 96}

# What an error says about the sizes that it got and expected, in this order.
_SAID = (
    re.compile(r"multiplied \(\d+x(?P<got>\d+) and (?P<want>\d+)x\d+\)"),
    re.compile(r"size of tensor a \((?P<got>\d+)\) must match the size of tensor b \((?P<want>\d+)\)"),
    re.compile(r"should contain (?P<got>\d+) elements not (?P<want>\d+)"),
    re.compile(r"\[\*.*?(?P<want>\d+)\], but got input of size.*?(?P<got>\d+)\]"),
)
_VIEWED = re.compile(r"shape '\[.*?(?P<want>\d+)\]' is invalid for input of size (?P<got>\d+)")


def search(model: nn.Module, sample: Callable[[nn.Module, tuple[int, ...]], Tensor], samples: int) -> Any:
    """Return inputs that `model` accepts in its current mode, or None if the search finds none.

    Args:
        model: The model.
        sample: Function that returns random inputs of a shape for a layer.
        samples: Number of samples in the inputs.
    """
    names = _required(model)
    layers = _entry_layers(model)
    if len(names) > 1:
        return _search_several(model, names, layers, sample, samples)
    attempts = itertools.count()
    for layer in layers[:4]:
        todo = [size for side in (*_SIDES, *_mentioned(model)) for size in _sizes(layer, side)]
        tried: set[tuple[int, ...]] = set()
        while todo and next(attempts) < _MOST_ATTEMPTS:
            size = todo.pop(0)
            if size in tried:
                continue
            tried.add(size)
            inputs = sample(layer, (samples, *_shape(layer, size)))
            error = failure(model, inputs, samples)
            if error is None:
                return inputs
            todo = [*_next_sizes(error, size, samples), *todo]
    return None


def _required(model: nn.Module) -> list[str]:
    """Return the names of the inputs that `forward` requires."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return [""]
    return [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _entry_layers(model: nn.Module) -> list[Any]:
    """Return the layers that may read the input: first those whose width no other layer gives."""
    layers = [module for module in model.modules() if _width(module) is not None]
    given = {_given(layer) for layer in layers}
    return sorted(layers, key=lambda layer: not isinstance(layer, nn.Embedding) and _width(layer) in given)


def _width(layer: Any) -> int | None:
    if isinstance(layer, nn.Embedding):
        return int(layer.num_embeddings)
    for name in ("in_channels", "in_features", "input_size", "embed_dim"):
        if isinstance(getattr(layer, name, None), int) and next(layer.parameters(recurse=False), None) is not None:
            return int(getattr(layer, name))
    return None


def _given(layer: Any) -> int | None:
    names = ("out_channels", "out_features", "hidden_size", "embedding_dim", "embed_dim")
    return next((int(getattr(layer, name)) for name in names if isinstance(getattr(layer, name, None), int)), None)


def _dimensions(layer: nn.Module) -> int:
    """Return the number of dimensions of one sample besides the channels or features."""
    kinds = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    return next((dimensions for kind, dimensions in kinds.items() if isinstance(layer, kind)), 1)


def _sizes(layer: nn.Module, side: int | tuple[int, ...]) -> list[tuple[int, ...]]:
    dimensions = _dimensions(layer)
    if isinstance(side, tuple):
        return [side] if len(side) == dimensions else []
    without = [()] if isinstance(layer, nn.Linear) else []
    return [*without, (side,) * dimensions]


def _shape(layer: Any, size: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(layer, nn.Embedding):
        return size
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return (layer.in_channels, *size)
    return (*size, _width(layer) or 1)


def _mentioned(model: nn.Module) -> list[int | tuple[int, ...]]:
    """Return the sizes that attributes of the model and the code of its `forward` mention."""
    found: list[Any] = []
    for module in itertools.islice(model.modules(), 50):
        found += [value for name, value in vars(module).items() if not name.startswith("_")]
        code = getattr(getattr(type(module), "forward", None), "__code__", None)
        if code is not None and not type(module).__module__.startswith("torch."):
            found += code.co_consts
    sides = [side for value in found for side in ((value, *value) if isinstance(value, tuple) else (value,))]
    return list(dict.fromkeys(filter(_is_size, sides)))


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple):
        return 0 < len(value) < 4 and all(_is_size(side) for side in value)
    return type(value) is int and 2 <= value <= 2048


def _next_sizes(error: str, size: tuple[int, ...], samples: int) -> Iterator[tuple[int, ...]]:
    """Yield the sizes to try next, after the model failed with `error` on inputs of `size`."""
    if not size:
        return
    guesses: list[int] = []
    said = [(int(match["got"]), int(match["want"])) for match in (pattern.search(error) for pattern in _SAID) if match]
    viewed = _VIEWED.search(error)
    said += [(int(viewed["got"]) // samples, int(viewed["want"]))] if viewed else []
    for got, want in said[:1]:
        scaled = [round(size[-1] * (want / max(1, got)) ** (1 / power)) for power in dict.fromkeys((len(size), 1))]
        guesses += [side + offset for side in scaled for offset in (0, 1, -1, 2, -2, 4, -4)]
    guesses += [int(number) for number in re.findall(r"\d+", error)]
    for side in guesses:
        if 2 <= side <= _LARGEST[len(size)]:
            yield (side,) * len(size)


def failure(model: nn.Module, inputs: Any, samples: int) -> str | None:
    """Return the error of the model on the inputs, or None if it gives a result for each sample."""
    try:
        with torch.no_grad():
            output = logits_of(call(model, inputs))
    except Exception as error:  # models raise anything on a shape they were not built for
        return str(error)
    gives = isinstance(output, Tensor) and output.shape[:1] == (samples,)
    return None if gives else "the model gives another number of results than samples"


def _search_several(
    model: nn.Module, names: list[str], layers: list[Any], sample: Callable[..., Tensor], samples: int
) -> Any:
    """Return inputs for a model with several of them: all alike, or each for another layer."""
    shapes = [
        (layer, _shape(layer, size)) for layer in layers[:6] for side in (16, 32, 64) for size in _sizes(layer, side)
    ]
    options = [sample(layer, (samples, *shape)) for layer, shape in dict.fromkeys(shapes)]
    masks = [position for position, name in enumerate(names) if "mask" in name.lower()]
    alike = [(option,) * len(names) for option in options]
    for inputs in itertools.islice([*alike, *itertools.product(options, repeat=len(names))], _MOST_ATTEMPTS * 3):
        given = [torch.ones_like(inputs[0]) if position in masks else value for position, value in enumerate(inputs)]
        if failure(model, tuple(given), samples) is None:
            return tuple(given)
    return None
