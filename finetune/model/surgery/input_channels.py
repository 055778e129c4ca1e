"""Adapt a model to pictures with another number of channels.

The layers that read the picture are found in a record of a forward pass and get filters for the new
channels: for one channel their sum, so that a grey picture gives what its RGB copy gave; else the
filters there are in turn, scaled so that their sum is what it was. timm does the same with published
weights (https://huggingface.co/docs/timm/models); here it is any model whose first layers are
convolutions or linear.

Layers stay the modules they are and only get a new weight, so that classes, settings and hooks are
kept. A layer that standardises its weight at each call (as in BiT and NFNet) would do so with the sum
too, and blow up filters that see colour alone; for one channel it keeps its weight and is shown copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from finetune.errors import ArgumentError
from finetune.model.freezing import eval_mode
from finetune.model.inspection.forward_graph import Operation, first_input, record
from finetune.model.inspection.probing import accepted_example, undisturbed
from finetune.model.outputs import call
from finetune.nested import tensors_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# What modules and their configs call the number of channels they read.
_COUNTS = ("in_channels", "in_chans", "num_channels")

_Change = tuple[dict[str, Any], str, Any]  # the namespace of a module or config, a name in it, its value


def adapt_input(model: nn.Module, in_channels: int, example: Any = None) -> None:
    """Make `model` read pictures of `in_channels` channels, in place.

    What it says of its input follows: `in_channels`, `in_chans`, `config.num_channels`, timm's
    `pretrained_cfg`. A model that has that many channels is left as it is.

    Args:
        example: an input that the model accepts; without one, inputs are guessed from its first layer.

    Raises:
        ArgumentError: what reads the picture cannot be adapted; the model is as before.
    """
    if not isinstance(in_channels, int) or isinstance(in_channels, bool) or in_channels < 1:
        raise ArgumentError(f"Expected in_channels to be a whole number from 1 on, but got {in_channels!r}.")
    example = accepted_example(model, _stated(model) if example is None else example)
    picture = next((tensor for tensor in tensors_of(example) if _is_picture(tensor)), None)
    if picture is None:
        raise _cannot(model, in_channels, "it accepted no picture that it was tried on")
    layers = _first_layers(model, example)
    axis = _channel_axis(picture, layers.values())
    if picture.shape[axis] == in_channels:
        return
    shape = (*picture.shape[:axis], in_channels, *picture.shape[axis + 1 :])
    wanted = _with(example, picture, torch.zeros(shape, dtype=picture.dtype, device=picture.device))
    copied = [layers[name] for name in layers if in_channels == 1 and _standardises(model, name, example)]
    before = _set(_changes(model, layers, copied, example, picture, axis, in_channels))
    show = partial(_shown_copies, copies=picture.shape[axis])
    hooks = [layer.register_forward_pre_hook(show) for layer in copied if not _is_shown_copies(layer)]
    try:
        with undisturbed(model), torch.no_grad():
            eval_mode(model)
            call(model, wanted)
    except Exception as error:
        _set(before)
        for hook in hooks:
            hook.remove()
        raise _cannot(model, in_channels, f"with its first layers adapted it fails: {error}") from error


def normalisation_within(model: nn.Module) -> tuple[float, float] | None:
    """Return the mean and std, of values in [0, 1], that a model gives its RGB input by itself; None if it does not.

    torchvision's GoogLeNet and Inception with `transform_input` undo ImageNet's normalisation of three
    channels and apply this one; `adapt_input` turns that off.
    """
    return (0.5, 0.5) if getattr(model, "transform_input", None) is True else None


def _stated(model: nn.Module) -> Tensor | None:
    """Return an input of the size that timm keeps with a model."""
    size = (vars(model).get("pretrained_cfg") or {}).get("input_size")
    return None if size is None else torch.zeros(2, *size).to(next(model.parameters()))


def _is_picture(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() > 2


def _first_layers(model: nn.Module, example: Any) -> dict[str, nn.Module]:
    """Return the layers with parameters that nothing else with parameters stands before, by full name."""
    with undisturbed(model):
        eval_mode(model)
        operations = record(model, example).operations
    raw: set[Operation] = set()  # they hold the picture, however it was cut and moved
    names: dict[str, None] = {}
    for operation in operations:
        if raw.issuperset(operation.inputs):
            if operation.parameters:
                names[operation.module] = None
            else:
                raw.add(operation)
    return {name: model.get_submodule(name) for name in names}


def _channel_axis(picture: Tensor, layers: Iterable[nn.Module]) -> int:
    """Return the axis of the channels: 1, but 2 where frames come first, and the last where it is theirs."""
    read = {getattr(layer, "in_channels", None) for layer in layers}
    axes = (1, 2, picture.dim() - 1)
    return next((axis for axis in axes if picture.shape[axis] in read), 1)


def _changes(
    model: nn.Module,
    layers: dict[str, nn.Module],
    copied: list[nn.Module],
    example: Any,
    picture: Tensor,
    axis: int,
    new: int,
) -> list[_Change]:
    old = picture.shape[axis]
    changes: list[_Change] = []
    for name, layer in layers.items():
        changes += [(owner, key, new) for owner in _around(model, name) for key in _COUNTS if owner.get(key) == old]
        if layer in copied:
            continue
        if not isinstance(layer, (*_CONVOLUTIONS, nn.Linear)) or layer._parameters.get("weight") is None:
            raise _cannot(model, new, f"{name or 'the model itself'} ({type(layer).__name__}) reads the picture")
        run = _run_length(model, name, example, picture, axis)
        if run is None:
            raise _cannot(model, new, f"its channels are mixed before {name} reads them")
        groups = getattr(layer, "groups", 1)
        if groups > 1 and (new > 1 or layer.in_channels != old):
            raise _cannot(model, new, f"{name} reads its channels in {groups} groups")
        weight = layer.weight.detach()
        # [outputs, places, channels, places, ...]: a group of filters reads equal channels, so its sum is enough
        weight = weight.sum(1, keepdim=True) if groups > 1 else _adapted(weight.unflatten(1, (-1, old, run)), new)
        count = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
        changes += [
            (layer._parameters, "weight", nn.Parameter(weight, layer.weight.requires_grad)),
            (vars(layer), count, weight.shape[1]),
        ]
        changes += [(vars(layer), "groups", 1)] if groups > 1 else []
    if normalisation_within(model):
        changes.append((vars(model), "transform_input", False))
    for key in ("pretrained_cfg", "default_cfg"):
        settings = vars(model).get(key)
        if isinstance(settings, dict) and "input_size" in settings:
            changes.append((vars(model), key, {**settings, "input_size": (new, *settings["input_size"][1:])}))
    return changes


def _adapted(weight: Tensor, new: int) -> Tensor:
    """Give filters [outputs, places, channels, places, ...] `new` channels; return [outputs, inputs, ...]."""
    old = weight.shape[2]
    summed = new == 1
    filters = weight.sum(2, keepdim=True) if summed else weight[:, :, torch.arange(new) % old] * (old / new)
    return filters.flatten(1, 3)


def _standardises(model: nn.Module, name: str, example: Any) -> bool:
    """Tell whether a convolution computes with something else than its weight: twice that gives not twice as much."""
    layer = model.get_submodule(name)
    if not isinstance(layer, _CONVOLUTIONS) or layer._parameters.get("weight") is None:
        return False
    with undisturbed(model), torch.no_grad():
        eval_mode(model)
        given = torch.randn_like(first_input(model, name, example))
        none, once, twice = (functional_call(layer, {"weight": layer.weight * by}, (given,)) for by in (0, 1, 2))
    return bool((twice - 2 * once + none).norm() > 0.01 * (once - none).norm())


def _shown_copies(layer: nn.Module, args: tuple[Tensor, ...], copies: int) -> tuple[Tensor, ...]:
    return (args[0].expand(-1, copies, *args[0].shape[2:]), *args[1:])


def _is_shown_copies(layer: nn.Module) -> bool:
    return any(getattr(hook, "func", None) is _shown_copies for hook in layer._forward_pre_hooks.values())


def _run_length(model: nn.Module, name: str, example: Any, picture: Tensor, axis: int) -> int | None:
    """Return how many features in a row a layer reads from the same channel; None if that has no order.

    It is 1 where a layer reads the picture as it is, the pixels of a patch where that was laid out
    channel by channel, and 1 again where it was laid out pixel by pixel.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(picture.shape, generator=generator).to(picture)
    blank = torch.zeros_like(picture)
    seen = []
    with undisturbed(model):
        eval_mode(model)
        for channel in (None, *range(picture.shape[axis])):
            shown = blank.clone()
            if channel is not None:
                shown.select(axis, channel).copy_(noise.select(axis, channel))
            seen.append(first_input(model, name, _with(example, picture, shown)))
    features = -1 if isinstance(model.get_submodule(name), nn.Linear) else 1
    depends = torch.stack([(one != seen[0]).movedim(features, 0).flatten(1).any(1) for one in seen[1:]])
    order = depends.int().argmax(0)
    run = int((order == 0).int().cumprod(0).sum())
    expected = torch.arange(len(order), device=order.device) // max(run, 1) % picture.shape[axis]
    return run if bool((depends.sum(0) == 1).all()) and torch.equal(order, expected) else None


def _around(model: nn.Module, name: str) -> list[dict[str, Any]]:
    """Return the namespaces of the modules around a layer and of their configs, each once."""
    parts = name.split(".")
    owners: list[Any] = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    owners += [owner.config for owner in owners if hasattr(owner, "config")]
    return list({id(owner): vars(owner) for owner in owners if hasattr(owner, "__dict__")}.values())


def _with(example: Any, picture: Tensor, other: Tensor) -> Any:
    """Return the example with another picture in its place."""
    return tree_map(lambda leaf: other if leaf is picture else leaf, example)


def _set(changes: list[_Change]) -> list[_Change]:
    """Make the changes, and return those that undo them."""
    before = [(owner, key, owner[key]) for owner, key, _ in changes]
    for owner, key, value in changes:
        owner[key] = value
    return before


def _cannot(model: nn.Module, in_channels: int, why: str) -> ArgumentError:
    return ArgumentError(
        f"{type(model).__name__} cannot be given in_channels={in_channels}: {why}. Expected a model whose first "
        f"layers are convolutions or linear layers that read the picture. Adapt it yourself, or put a layer of "
        f"yours in front: nn.Sequential(nn.Conv2d({in_channels}, 3, 1), model)."
    )
