"""Replace the head.

The head is one layer, or several if a model has auxiliary or distilled heads beside its main one.
All of them are replaced together, on the same device and in the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Replace the heads of a model and return the full names of the new ones.

    Args:
        model: The model, changed in place.
        n: Number of outputs.
        names: Full names of the heads, the main one first.
        head: The main head: a module, a function of `num_features` that returns one, `"append"` for a new
            layer after the existing outputs, or None for a new layer like the old one. Auxiliary heads
            always become new layers.
        verify: Whether to check that the model has `n` outputs, if an input for it can be guessed.

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
    names = _with_head(model, n, names)
    new = _new_modules(model, n, names, head)
    old = {name: model.get_submodule(name) for name in new}
    example = accepted_example(model) if verify else None
    _set_modules(model, new)
    if example is not None and not _has_outputs(model, n, example):
        _set_modules(model, old)
        raise HeadError(
            f"With {', '.join(names)} replaced, the first result of {type(model).__name__} does not have {n} outputs, "
            f"so that is not the whole head, or the head's result is not the model's first. The model is unchanged. "
            f"Name another layer with replace_head(n, layer=...)."
        )
    _record_outputs(model, n, names)
    return (f"{names[0]}.1", *names[1:]) if head == "append" else names


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
