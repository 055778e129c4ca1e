"""Adapt a model to images with another number of channels.

The layers that read the image are found in a recorded forward pass and get filters for the new
channels. For one channel these are the sum of the old filters, so that a grayscale image has the output of
its RGB copy. For more channels the old filters are repeated in turn and scaled to keep their sum.
timm does the same with published weights (https://huggingface.co/docs/timm/models); this works for any
model whose first layers are convolutions or linear.

Layers stay the same modules and only get a new weight, which keeps their class, settings and hooks. A
layer that standardizes its weight at each call, as in BiT and NFNet, would also standardize the sum and
amplify filters that respond to color alone. For one channel such a layer keeps its weight, and a hook
repeats the channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from finetune.errors import ArgumentError, whole_number
from finetune.model.freezing import eval_mode
from finetune.model.inspection.forward_graph import Operation, first_input, record
from finetune.model.inspection.probing import accepted_example, undisturbed
from finetune.model.outputs import call
from finetune.nested import tensors_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Attributes of modules and configs that hold the number of input channels.
_COUNTS = ("in_channels", "in_chans", "num_channels")

_Change = tuple[dict[str, Any], str, Any]  # the namespace of a module or config, a name in it, the new value


def adapt_input(model: nn.Module, in_channels: int, example: Any = None) -> None:
    """Adapt `model` in place to images with `in_channels` channels.

    Its records of the number of channels follow: `in_channels`, `in_chans`, `config.num_channels`, and
    timm's `pretrained_cfg`. A model that already has that many channels is not changed.

    Args:
        model: The model.
        in_channels: Number of channels of its images.
        example: An input that the model accepts. Without one, inputs are guessed from its first layer.

    Raises:
        ArgumentError: If the layers that read the image cannot be adapted. The model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
        >>> adapt_input(model, 1)
        >>> model[0]
        Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    in_channels = whole_number("in_channels", in_channels)
    example = accepted_example(model, _stored_example(model) if example is None else example)
    image = next((tensor for tensor in tensors_of(example) if tensor.is_floating_point() and tensor.dim() > 2), None)
    if image is None:
        raise _cannot_adapt(model, in_channels, "it accepted none of the guessed images")
    layers = _first_layers(model, example)
    given = _Input(example, image, _channel_axis(image, layers.values()))
    if given.channels == in_channels:
        return
    repeating = [layers[name] for name in layers if in_channels == 1 and _standardizes(model, name, example)]
    before = _apply(_changes(model, layers, repeating, given, in_channels))
    repeat = partial(_repeat_channel, times=given.channels)
    hooks = [layer.register_forward_pre_hook(repeat) for layer in repeating if not _repeats_channel(layer)]
    try:
        with undisturbed(model), torch.no_grad():
            eval_mode(model)
            call(model, given.with_image(given.blank(in_channels)))
    except Exception as error:
        _apply(before)
        for hook in hooks:
            hook.remove()
        raise _cannot_adapt(model, in_channels, f"it fails with adapted first layers: {error}") from error


def normalization_within(model: nn.Module) -> tuple[float, float] | None:
    """Return the mean and std, for values in [0, 1], that the model itself applies to RGB inputs, or None.

    With `transform_input`, torchvision's GoogLeNet and Inception replace ImageNet's normalization of the
    three channels by this one. `adapt_input` turns that off.
    """
    return (0.5, 0.5) if getattr(model, "transform_input", None) is True else None


@dataclass(frozen=True)
class _Input:
    """An example input, the image in it, and the image's channel axis."""

    example: Any
    image: Tensor
    axis: int

    @property
    def channels(self) -> int:
        return self.image.shape[self.axis]

    def blank(self, channels: int) -> Tensor:
        """Return a black image of the same size with `channels` channels."""
        shape = (*self.image.shape[: self.axis], channels, *self.image.shape[self.axis + 1 :])
        return torch.zeros(shape, dtype=self.image.dtype, device=self.image.device)

    def with_image(self, image: Tensor) -> Any:
        """Return the example with `image` in place of its image."""
        return tree_map(lambda leaf: image if leaf is self.image else leaf, self.example)


def _stored_example(model: nn.Module) -> Tensor | None:
    """Return an input of the size stored in a timm model, or None."""
    size = (vars(model).get("pretrained_cfg") or {}).get("input_size")
    return None if size is None else torch.zeros(2, *size).to(next(model.parameters()))


def _first_layers(model: nn.Module, example: Any) -> dict[str, nn.Module]:
    """Return the first layers with parameters on each path from the input, by full name."""
    with undisturbed(model):
        eval_mode(model)
        operations = record(model, example).operations
    raw: set[Operation] = set()  # operations that only cut and move the image
    names: dict[str, None] = {}
    for operation in operations:
        if raw.issuperset(operation.inputs):
            if operation.parameters:
                names[operation.module] = None
            else:
                raw.add(operation)
    return {name: model.get_submodule(name) for name in names}


def _channel_axis(image: Tensor, layers: Iterable[nn.Module]) -> int:
    """Return the channel axis: 1, or 2 for videos with frames first, or the last for channels-last inputs."""
    read = {getattr(layer, "in_channels", None) for layer in layers}
    axes = (1, 2, image.dim() - 1)
    return next((axis for axis in axes if image.shape[axis] in read), 1)


def _changes(
    model: nn.Module, layers: dict[str, nn.Module], repeating: list[nn.Module], given: _Input, new: int
) -> list[_Change]:
    """Return the changes that adapt `layers`, except for the weights of those in `repeating`."""
    changes: list[_Change] = []
    for name, layer in layers.items():
        owners = _around(model, name)
        changes += [(owner, key, new) for owner in owners for key in _COUNTS if owner.get(key) == given.channels]
        if layer not in repeating:
            changes += _weight_changes(model, name, layer, given, new)
    if normalization_within(model):
        changes.append((vars(model), "transform_input", False))
    for key in ("pretrained_cfg", "default_cfg"):
        settings = vars(model).get(key)
        if isinstance(settings, dict) and "input_size" in settings:
            changes.append((vars(model), key, {**settings, "input_size": (new, *settings["input_size"][1:])}))
    return changes


def _weight_changes(model: nn.Module, name: str, layer: nn.Module, given: _Input, new: int) -> list[_Change]:
    """Return the changes that give a layer filters for `new` channels."""
    if not isinstance(layer, (*_CONVOLUTIONS, nn.Linear)) or layer._parameters.get("weight") is None:
        raise _cannot_adapt(model, new, f"{name or 'the model itself'} ({type(layer).__name__}) reads the image")
    run = _run_length(model, name, given)
    if run is None:
        raise _cannot_adapt(model, new, f"its channels are mixed before {name} reads them")
    groups = getattr(layer, "groups", 1)
    if groups > 1 and (new > 1 or layer.in_channels != given.channels):
        raise _cannot_adapt(model, new, f"{name} reads its channels in {groups} groups")
    weight = layer.weight.detach()
    if groups > 1:
        weight = weight.sum(1, keepdim=True)  # all filters of a group read the same gray channel
    else:
        weight = _adapted(weight.unflatten(1, (-1, given.channels, run)), new)
    count = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
    changes: list[_Change] = [
        (layer._parameters, "weight", nn.Parameter(weight, layer.weight.requires_grad)),
        (vars(layer), count, weight.shape[1]),
    ]
    return [*changes, (vars(layer), "groups", 1)] if groups > 1 else changes


def _adapted(weight: Tensor, new: int) -> Tensor:
    """Give filters [outputs, positions, channels, positions, ...] `new` channels; return [outputs, inputs, ...]."""
    old = weight.shape[2]
    summed = new == 1
    filters = weight.sum(2, keepdim=True) if summed else weight[:, :, torch.arange(new) % old] * (old / new)
    return filters.flatten(1, 3)


def _standardizes(model: nn.Module, name: str, example: Any) -> bool:
    """Return whether a convolution transforms its weight, so that its output is not linear in it."""
    layer = model.get_submodule(name)
    if not isinstance(layer, _CONVOLUTIONS) or layer._parameters.get("weight") is None:
        return False
    with undisturbed(model), torch.no_grad():
        eval_mode(model)
        given = torch.randn_like(first_input(model, name, example))
        none, once, twice = (functional_call(layer, {"weight": layer.weight * by}, (given,)) for by in (0, 1, 2))
    return bool((twice - 2 * once + none).norm() > 0.01 * (once - none).norm())


def _repeat_channel(layer: nn.Module, args: tuple[Tensor, ...], times: int) -> tuple[Tensor, ...]:
    return (args[0].expand(-1, times, *args[0].shape[2:]), *args[1:])


def _repeats_channel(layer: nn.Module) -> bool:
    return any(getattr(hook, "func", None) is _repeat_channel for hook in layer._forward_pre_hooks.values())


def _run_length(model: nn.Module, name: str, given: _Input) -> int | None:
    """Return the number of consecutive input features that come from the same channel, or None if they have no order.

    It is 1 for a layer that reads the image itself, the number of pixels for patches laid out channel by
    channel, and 1 for patches laid out pixel by pixel.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(given.image.shape, generator=generator).to(given.image)
    seen = []
    with undisturbed(model):
        eval_mode(model)
        for channel in (None, *range(given.channels)):
            image = given.blank(given.channels)
            if channel is not None:
                image.select(given.axis, channel).copy_(noise.select(given.axis, channel))
            seen.append(first_input(model, name, given.with_image(image)))
    features = -1 if isinstance(model.get_submodule(name), nn.Linear) else 1
    depends = torch.stack([(one != seen[0]).movedim(features, 0).flatten(1).any(1) for one in seen[1:]])
    order = depends.int().argmax(0)
    run = int((order == 0).int().cumprod(0).sum())
    expected = torch.arange(len(order), device=order.device) // max(run, 1) % given.channels
    return run if bool((depends.sum(0) == 1).all()) and torch.equal(order, expected) else None


def _around(model: nn.Module, name: str) -> list[dict[str, Any]]:
    """Return the namespaces of the modules around a layer and of their configs, without duplicates."""
    parts = name.split(".")
    owners: list[Any] = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    owners += [owner.config for owner in owners if hasattr(owner, "config")]
    return list({id(owner): vars(owner) for owner in owners if hasattr(owner, "__dict__")}.values())


def _apply(changes: list[_Change]) -> list[_Change]:
    """Apply the changes and return those that undo them."""
    before = [(owner, key, owner[key]) for owner, key, _ in changes]
    for owner, key, value in changes:
        owner[key] = value
    return before


def _cannot_adapt(model: nn.Module, in_channels: int, why: str) -> ArgumentError:
    return ArgumentError(
        f"{type(model).__name__} cannot be adapted to in_channels={in_channels}: {why}. Expected a model whose first "
        f"layers are convolutions or linear layers that read the image. Adapt it yourself, or put a layer in front: "
        f"nn.Sequential(nn.Conv2d({in_channels}, 3, 1), model)."
    )
