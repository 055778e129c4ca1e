"""Replace the head.

The head is one layer, or several where a model has auxiliary or distilled heads beside its main one;
all of them are replaced together. Device, dtype and what surrounds the layer are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import HeadError
from finetune.model.families import family_of
from finetune.model.freezing import eval_mode, unfreeze
from finetune.model.inspection.probing import accepted_example, undisturbed
from finetune.model.outputs import auxiliary_of, call, logits_of
from finetune.model.patterns import names_above
from finetune.model.surgery.head_search import RESIZABLE

HeadFactory = Callable[[int], nn.Module]


def replace_head(
    model: nn.Module,
    n: int,
    names: tuple[str, ...],
    head: nn.Module | HeadFactory | str | None = None,
    *,
    verify: bool = True,
) -> tuple[str, ...]:
    """Give the heads `names` `n` outputs; return the full names of the new ones.

    `head` is None for a fresh layer like the old one, a module, a factory of `num_features`, or
    `"append"` for a fresh layer behind the outputs there are. It shapes the main head; those beside
    it get fresh layers. With `verify`, the model must then give `n` outputs on an
    example input, where one can be guessed.

    Raises:
        HeadError: the head cannot be made, or does not give `n` outputs. The model is as before.
    """
    if "" in names:
        raise HeadError(
            f"The model is a bare {type(model).__name__}, which cannot be replaced within itself. Make the new "
            f"layer yourself, or wrap the model: nn.Sequential(model)."
        )
    names = _made_before(model, n, names)
    old = {name: model.get_submodule(name) for name in names}
    new = {name: _fresh(module, n) for name, module in old.items()}
    main = names[0]
    if head == "append":
        new[main] = nn.Sequential(old[main], _fresh(old[main], n, in_features=num_outputs(old[main])))
    elif head is not None:
        new[main] = _given(old[main], n, head)
    for name in names:
        rectifier = _rectifier_behind(model, name)
        if rectifier:  # as in SqueezeNet: it would hold the new logits at or above 0
            old[rectifier], new[rectifier] = model.get_submodule(rectifier), nn.Identity()
    example = accepted_example(model) if verify else None
    _put(model, new)
    if example is not None and not _gives(model, n, example):
        _put(model, old)
        raise HeadError(
            f"With {', '.join(names)} replaced, {type(model).__name__} does not give {n} outputs first, so that "
            f"is not the whole head, or its result is not the model's first. The model is as it was. Name another with "
            f"replace_head(n, layer=...)."
        )
    _tell_truth(model, n, names)
    return (f"{main}.1", *names[1:]) if head == "append" else names


def tell_task(model: nn.Module, kind: str | None, classes: Sequence[str] | None) -> None:
    """Let the model itself say what its outputs mean, where its family has a place for that."""
    family_of(model).tell_task(model, kind, classes)


def num_features(module: nn.Module) -> int:
    """Return how many features a head reads.

    Raises:
        HeadError: it holds no linear or convolutional layer.
    """
    first = _resizable(module)[0]
    return int(first.in_features if isinstance(first, nn.Linear) else first.in_channels)


def num_outputs(module: nn.Module) -> int:
    """Return how many outputs a head gives.

    Raises:
        HeadError: it holds no linear or convolutional layer.
    """
    return int(_resizable(module)[-1].weight.shape[0])


def _made_before(model: nn.Module, n: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """Make the head of a model that was built without one; return the heads' names."""
    if not all(isinstance(model.get_submodule(name), nn.Identity) for name in names):
        return names
    family_of(model).add_head(model, n)
    return family_of(model).heads(model) or names


def _tell_truth(model: nn.Module, n: int, names: tuple[str, ...]) -> None:
    """Set what the model says of its number of outputs, which others read: its own loss, its own saving."""
    around = [model.get_submodule(above) for name in names for above in names_above(name)]
    for owner in (*around, getattr(model, "config", None)):
        for attribute in ("num_classes", "num_labels"):
            if isinstance(getattr(owner, attribute, None), int):
                setattr(owner, attribute, n)
    family_of(model).tell_outputs(model, n)


def _resizable(module: nn.Module) -> list[Any]:
    layers = [layer for layer in module.modules() if isinstance(layer, RESIZABLE)]
    if not layers:
        raise HeadError(
            f"The head is a {type(module).__name__} without a linear or convolutional layer, so its size is not "
            f"known. Name the layer to replace with replace_head(n, layer=...)."
        )
    return layers


def _fresh(old: nn.Module, n: int, in_features: int | None = None) -> nn.Module:
    """Make a layer of `n` outputs that stands where `old` stood, on its device and in its dtype."""
    like = _resizable(old)[0]
    features = in_features or num_features(old)
    place: dict[str, Any] = {"device": like.weight.device, "dtype": like.weight.dtype}
    bias = like.bias is not None or like is not old
    if isinstance(like, nn.Linear):
        return nn.Linear(features, n, bias=bias, **place)
    kind: Any = next(layer for layer in RESIZABLE if isinstance(like, layer))
    if in_features is not None:
        made: nn.Module = kind(features, n, 1, bias=bias, **place)
        return made
    geometry = {key: getattr(like, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    made = kind(features, n, bias=bias, **geometry, **place)
    return made


def _given(old: nn.Module, n: int, head: nn.Module | HeadFactory | str) -> nn.Module:
    """Take the user's head, or have their factory make it, and try it on features of zero."""
    like = _resizable(old)[0]
    features = num_features(old)
    try:
        made = head if isinstance(head, nn.Module) else head(features) if callable(head) else None
    except Exception as error:
        raise HeadError(f"The given function makes no head of {features} features: {error}") from error
    if not isinstance(made, nn.Module):
        raise HeadError(
            f"Expected head to be a module, 'append', or a function of the number of features that returns a "
            f"module, but got {head if made is None else made!r}."
        )
    made = made.to(like.weight.device, like.weight.dtype)
    unfreeze(made)
    shape = (2, features) + (1,) * (like.weight.dim() - 2)
    try:
        with undisturbed(made), torch.no_grad():
            eval_mode(made)
            output = made(torch.zeros(shape, device=like.weight.device, dtype=like.weight.dtype))
    except Exception as error:
        raise HeadError(
            f"The given head does not accept the {features} features before it, shape {list(shape)}: {error}"
        ) from error
    if not isinstance(output, Tensor) or output.shape[1:2] != (n,):
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise HeadError(f"The given head should give [2, {n}] for two samples, but gave {got}.")
    return made


def _rectifier_behind(model: nn.Module, name: str) -> str | None:
    """Return the name of a ReLU that directly follows a layer in its `Sequential`, if there is one."""
    parent_name, _, own = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if not isinstance(parent, nn.Sequential):
        return None
    children = list(parent._modules)  # `named_children` leaves out a layer's second place, as of a ReLU used twice
    behind = children[children.index(own) + 1 :][:1]
    rectified = behind and isinstance(parent._modules[behind[0]], nn.ReLU)
    return f"{parent_name}.{behind[0]}".lstrip(".") if rectified else None


def _put(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, module)


def _gives(model: nn.Module, n: int, example: Any) -> bool:
    """Tell whether the model runs on an example and its main result, and auxiliary ones, have `n` outputs."""
    with undisturbed(model), torch.no_grad():
        eval_mode(model)
        try:
            output = call(model, example)
        except RuntimeError:  # another layer reads what this one gives
            return False
        shapes = [tuple(tensor.shape) for tensor in (logits_of(output), *auxiliary_of(output))]
    # [N, n] and [N, n, H, W], [N, T, n], and [N] of a model that squeezes its single output away
    return all(n in (shape[1], shape[-1]) if len(shape) > 1 else n == 1 for shape in shapes)
