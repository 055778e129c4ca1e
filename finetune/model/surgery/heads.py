"""Replace the head.

The head is one layer, or several if a model has auxiliary or distilled heads beside its main one.
All of them are replaced together, on the same device and in the same dtype.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import HeadError
from finetune.model.families import family_of
from finetune.model.freezing import eval_mode, unfreeze
from finetune.model.inspection.forward_graph import operations_behind, record
from finetune.model.inspection.probing import accepted_example, undisturbed
from finetune.model.outputs import auxiliary_of, call, logits_of
from finetune.model.patterns import names_above
from finetune.model.surgery.head_search import RESIZABLE

logger = logging.getLogger("finetune")

_RELUS = (nn.ReLU, nn.ReLU6)
_CLAMPS = (*_RELUS, nn.Softmax, nn.Sigmoid, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Tanh)
_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

HeadFactory = Callable[[int], nn.Module]


def replace_head(
    model: nn.Module,
    n: int,
    names: tuple[str, ...],
    head: nn.Module | HeadFactory | str | None = None,
    *,
    verify: bool = True,
    example: Any = None,
    clamps: bool = False,
    say: bool = False,
    repeats: bool = False,
) -> tuple[str, ...]:
    """Replace the heads of a model and return the full names of the new ones.

    Args:
        model: The model, changed in place.
        n: Number of outputs.
        names: Full names of the heads, the main one first.
        head: The main head: a module, a function of `num_features` that returns one, `"append"` for a new
            layer after the existing outputs, or None for a new layer like the old one. Auxiliary heads
            always become new layers.
        verify: Whether to check that the model has `n` outputs, if an input for it can be guessed.
        example: Inputs to check it with; None guesses them.
        clamps: Whether a softmax, sigmoid or other module behind the head that holds its outputs within bounds is
            removed, as a ReLU always is.
        say: Whether to log the old and the new head.
        repeats: Whether a checkpoint is loaded. The removed layers were logged when its head was replaced.

    Raises:
        HeadError: If the head cannot be built, or the model with it does not have `n` outputs. The model is
            unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> replace_head(model, 10, ("2",))
        ('2',)
        >>> model[2]
        Linear(in_features=8, out_features=10, bias=True)
    """
    if "" in names:
        raise HeadError(
            f"The model is a bare {type(model).__name__}, which cannot be replaced in place. Build the new layer "
            f"yourself, or wrap the model: nn.Sequential(model)."
        )
    before = describe_layer(model.get_submodule(names[0]))
    names = _with_head(model, n, names)
    new = _new_modules(model, n, names, head)
    if example is None and verify:
        example = accepted_example(model)
    pools: list[str] = []
    if example is not None:
        behind = _behind(model, example, names)
        new.update((name, nn.Identity()) for name in behind if isinstance(behind[name], _CLAMPS if clamps else _RELUS))
        pools = [name for name, module in behind.items() if isinstance(module, _POOLS)]
        if not pools and not _decides_outputs(model, names[0], example):
            raise _not_the_head(model, names, n)
    old = {name: model.get_submodule(name) for name in (*new, *pools)}
    _set_modules(model, new)
    if example is not None and not _has_outputs(model, n, example):
        remove(model, pools)  # a pooling to a fixed number of outputs
        new.update((name, nn.Identity()) for name in pools)
        if not pools or not _has_outputs(model, n, example):
            _set_modules(model, old)
            raise _not_the_head(model, names, n)
    if not repeats:
        _say_removed({name: old[name] for name, module in new.items() if isinstance(module, nn.Identity)})
    _record_outputs(model, n, names)
    if say:
        after = f"{describe_layer(model.get_submodule(names[0]))}, {n} output{'s' * (n > 1)}"
        logger.info(f"Head{'s' * (len(names) > 1)} {', '.join(names)}: {before} -> {after}")
    return (f"{names[0]}.1", *names[1:]) if head == "append" else names


def identities(model: nn.Module) -> set[str]:
    """Return the full names of the identities in a model, among them those in the place of removed modules."""
    return {name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.Identity)}


def remove(model: nn.Module, names: Iterable[str]) -> None:
    """Put identities in the place of modules.

    Raises:
        AttributeError: If there is no module of a name. The model is unchanged.
    """
    found = {name: model.get_submodule(name) for name in names if name}
    _set_modules(model, {name: nn.Identity() for name in found})


def describe_layer(layer: nn.Module) -> str:
    """Return the class of a layer and its sizes, if it states them.

    Example:
        >>> describe_layer(nn.Linear(4, 3)), describe_layer(nn.Conv2d(3, 8, 1)), describe_layer(nn.Flatten())
        ('Linear(4, 3)', 'Conv2d(3, 8)', 'Flatten')
    """
    keys = ("in_features", "out_features"), ("in_channels", "out_channels")
    sizes = [(getattr(layer, first), getattr(layer, last)) for first, last in keys if hasattr(layer, last)]
    return type(layer).__name__ + ("({}, {})".format(*sizes[0]) if sizes else "")


def num_features(module: nn.Module) -> int:
    """Return the number of features that a head reads.

    Raises:
        HeadError: If the head has no linear or convolutional layer.
    """
    first = _resizable(module)[0]
    return int(first.in_features if isinstance(first, nn.Linear) else first.in_channels)


def num_outputs(module: nn.Module) -> int:
    """Return the number of outputs of a head.

    Raises:
        HeadError: If the head has no linear or convolutional layer.
    """
    return int(_resizable(module)[-1].weight.shape[0])


def _with_head(model: nn.Module, n: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """Add the family's head to a model that was built without one, and return the names of the heads."""
    if not all(isinstance(model.get_submodule(name), nn.Identity) for name in names):
        return names
    family = family_of(model)
    family.add_head(model, n)
    return family.heads(model) or names


def _new_modules(
    model: nn.Module, n: int, names: tuple[str, ...], head: nn.Module | HeadFactory | str | None
) -> dict[str, nn.Module]:
    """Return the modules to set, by full name: the new heads, and identities for the ReLUs after them."""
    new = {name: _new_layer(model.get_submodule(name), n) for name in names}
    old = model.get_submodule(names[0])
    if head == "append":
        new[names[0]] = nn.Sequential(old, _new_layer(old, n, in_features=num_outputs(old)))
    elif head is not None:
        new[names[0]] = _given_head(old, n, head)
    for name in names:
        relu = _relu_behind(model, name)
        if relu:  # as in SqueezeNet, where it would clamp the new logits at 0
            new[relu] = nn.Identity()
    return new


def _behind(model: nn.Module, example: Any, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the modules that compute the outputs from the head's result alone, without parameters, by name."""
    with undisturbed(model):
        eval_mode(model)
        recording = record(model, example)
    behind = operations_behind(recording)
    elsewhere = {operation.module for operation in recording.operations if operation not in behind}
    called = dict.fromkeys(operation.module for operation in behind if operation.module not in elsewhere)
    modules = dict(model.named_modules(remove_duplicate=False))
    own = {name: modules[name] for name in called if name and name not in names}
    return {name: module for name, module in own.items() if next(module.parameters(), None) is None}


def _decides_outputs(model: nn.Module, name: str, example: Any) -> bool:
    """Return whether the model has as many outputs as the layer; else other layers or operations decide."""
    with undisturbed(model), torch.no_grad():
        eval_mode(model)
        shape = logits_of(call(model, example)).shape
    width = num_outputs(model.get_submodule(name))
    return width in (*shape[1:2], *shape[-1:]) if len(shape) > 1 else width == 1


def _not_the_head(model: nn.Module, names: tuple[str, ...], n: int) -> HeadError:
    return HeadError(
        f"With {', '.join(names)} replaced, the first result of {type(model).__name__} does not have {n} outputs, so "
        f"that is not the whole head, or the head's result is not the model's first. The model is unchanged. Name "
        f"another layer with replace_head(n, layer=...), or change the module itself."
    )


def _say_removed(removed: dict[str, nn.Module]) -> None:
    for name, module in removed.items():
        logger.warning(
            f"The {type(module).__name__} {name!r} behind the head is removed, because it would hold back the new "
            f"outputs: the loss expects logits."
        )


def _record_outputs(model: nn.Module, n: int, names: tuple[str, ...]) -> None:
    """Update the counts that the model's own loss and saving read: `num_classes`, `num_labels`, its config."""
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
            f"The head is a {type(module).__name__} without a linear or convolutional layer, so its size is unknown. "
            f"Name the layer to replace with replace_head(n, layer=...)."
        )
    return layers


def _new_layer(old: nn.Module, n: int, in_features: int | None = None) -> nn.Module:
    """Return a layer with `n` outputs to replace `old`, on its device and in its dtype."""
    like = _resizable(old)[0]
    features = in_features or num_features(old)
    options: dict[str, Any] = {
        "bias": like.bias is not None or like is not old,
        "device": like.weight.device,
        "dtype": like.weight.dtype,
    }
    if isinstance(like, nn.Linear):
        return nn.Linear(features, n, **options)
    if in_features is None:
        kept = ("stride", "padding", "dilation", "padding_mode")
        options.update({"kernel_size": like.kernel_size, **{key: getattr(like, key) for key in kept}})
    else:
        options["kernel_size"] = 1
    convolution: Any = next(kind for kind in RESIZABLE if isinstance(like, kind))
    made: nn.Module = convolution(features, n, **options)
    return made


def _given_head(old: nn.Module, n: int, head: nn.Module | HeadFactory | str) -> nn.Module:
    """Return the user's head, or the result of their function, after a trial on zero features."""
    like = _resizable(old)[0]
    features = num_features(old)
    try:
        made = head if isinstance(head, nn.Module) else head(features) if callable(head) else None
    except Exception as error:
        raise HeadError(f"The function given as head fails for {features} features: {error}") from error
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
            f"The given head does not accept the model's {features} features, shape {list(shape)}: {error}"
        ) from error
    if not isinstance(output, Tensor) or output.shape[1:2] != (n,):
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise HeadError(f"Expected the given head to return shape [2, {n}] for two samples, but got {got}.")
    return made


def _relu_behind(model: nn.Module, name: str) -> str | None:
    """Return the name of the ReLU that directly follows a layer in its `Sequential`, if there is one."""
    parent_name, _, own = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if not isinstance(parent, nn.Sequential):
        return None
    children = list(parent._modules)  # named_children would skip the second place of a ReLU used twice
    behind = children[children.index(own) + 1 :][:1]
    found = behind and isinstance(parent._modules[behind[0]], nn.ReLU)
    return f"{parent_name}.{behind[0]}".lstrip(".") if found else None


def _set_modules(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, module)


def _has_outputs(model: nn.Module, n: int, example: Any) -> bool:
    """Return whether the model runs on an example with `n` outputs in its main and auxiliary results."""
    with undisturbed(model), torch.no_grad():
        eval_mode(model)
        try:
            output = call(model, example)
        except RuntimeError:  # another layer reads the output of this one
            return False
        shapes = [tuple(tensor.shape) for tensor in (logits_of(output), *auxiliary_of(output))]
    # [N, n], [N, n, H, W], [N, T, n], and [N] from a model that squeezes its single output
    return all(n in (shape[1], shape[-1]) if len(shape) > 1 else n == 1 for shape in shapes)
