"""PEFT adapters (https://huggingface.co/docs/peft): models that come with them, and LoRA added to a model.

`get_peft_model(model, config)` freezes a model and adds trainable parameters: adapters, and copies of the
modules listed in `modules_to_save`. Most functions here deal with a model of that kind. In contrast, `add_lora`
puts PEFT's LoRA layers into the user's own model, where they are ordinary layers.

PEFT is imported only for models that it made and when LoRA is requested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from finetune.errors import ArgumentError, HeadError
from finetune.model.freezing import freeze_state_restored, trainable

# alpha / r in the LoRA paper, the scale of an adapter's output (arXiv 2106.09685).
_LORA_SCALE = 2


def has_adapters(model: nn.Module) -> bool:
    """Return whether the model is a `PeftModel`."""
    return any(cls.__name__ == "PeftModel" and cls.__module__.split(".")[0] == "peft" for cls in type(model).__mro__)


def scope(model: nn.Module) -> set[str] | None:
    """Return the full names of PEFT's parameters and the trainable ones, or None without PEFT."""
    if not has_adapters(model):
        return None
    return saved_by_peft(model) | trainable(model).keys()


def saved_by_peft(model: nn.Module) -> set[str]:
    """Return the full names of the parameters that PEFT saves for its active adapter."""
    from peft import get_peft_model_state_dict

    state = model.state_dict(keep_vars=True)
    saved = get_peft_model_state_dict(model, state, adapter_name=str(model.active_adapter), save_embedding_layers=False)
    kept = {id(value) for value in saved.values()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in kept}


def base(model: nn.Module) -> nn.Module:
    """Return the model beneath the adapters, or the model itself if it has none."""
    return named_base(model)[1] if has_adapters(model) else model


def named_base(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the full name of the model beneath the adapters, and that model."""
    base = model.get_base_model()  # type: ignore[operator]
    return next((name, module) for name, module in model.named_modules() if module is base)


def active_name(model: nn.Module, name: str) -> str:
    """Return the full name of the module that runs in place of another: its adapted layer or its trainable copy."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        around = ".".join(parts[:depth])
        module = model.get_submodule(around)
        if "base_layer" in module._modules:
            return around
        if "modules_to_save" in module._modules and "original_module" in module._modules:
            copy = f"{around}.modules_to_save.{module.active_adapter}"
            return ".".join([copy, *parts[depth + (2 if name.startswith(copy) else 0) :]])
    return name


def check_changeable(model: nn.Module, error: type[ArgumentError] | type[HeadError], argument: str) -> None:
    """Refuse to change the model beneath PEFT's adapters, because PEFT does not save it.

    Args:
        model: The model.
        error: The type of error to raise.
        argument: The code that makes the change, for the message.

    Raises:
        ArgumentError, HeadError: If the model is a `PeftModel`.
    """
    if has_adapters(model):
        raise error(
            f"The model has PEFT adapters, which PEFT saves without the model beneath them, so a change to that model "
            f"would be lost. Change it first: get_peft_model({argument}.model, config)."
        )


def lora_targets(model: nn.Module, heads: Sequence[str]) -> list[str]:
    """Return the full names of the layers to adapt: all linear layers outside the heads, else the convolutions.

    Raises:
        ArgumentError: If the model has neither.

    Example:
        >>> lora_targets(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), heads=["1"])
        ['0']
    """
    found: dict[type[nn.Module], list[str]] = {nn.Linear: [], nn.Conv2d: []}
    for name, module in model.named_modules():
        in_head = any(f"{name}.".startswith(f"{head}.") for head in heads)
        if type(module) in found and not in_head and getattr(module, "groups", 1) == 1:  # depthwise ones are small
            found[type(module)].append(name)
    names = found[nn.Linear] or found[nn.Conv2d]
    if not names:
        raise ArgumentError(
            f"{type(model).__name__} has no linear layer and no convolution outside its head for LoRA to adapt. Choose "
            f"another strategy."
        )
    return names


def add_lora(model: nn.Module, layers: Sequence[str], rank: int) -> Callable[[], None]:
    """Add LoRA adapters to layers of the model and return a function that removes them.

    New adapters do not change the output. Existing weights keep their freeze state. Names within an adapted
    layer change, for example from `weight` to `base_layer.weight`.

    Args:
        model: The model, changed in place.
        layers: Full names of the layers.
        rank: Rank of the adapters.

    Raises:
        ArgumentError: If PEFT is not installed or cannot adapt these layers.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise ArgumentError("peft is not installed. Run `pip install peft`.") from error
    config = LoraConfig(r=rank, lora_alpha=_LORA_SCALE * rank, target_modules=list(layers))
    with freeze_state_restored(model):
        try:
            added = LoraModel(model, config, "default")
        except ValueError as error:
            raise ArgumentError(f"PEFT cannot add LoRA adapters to {type(model).__name__}: {error}") from error

    def undo() -> None:
        with freeze_state_restored(model):
            added.unload()

    return undo


def merged(model: nn.Module) -> nn.Module:
    """Return the model beneath all adapters with their updates in its own weights. The model is used up.

    Raises:
        ArgumentError: If adapters of this kind cannot be merged.

    Example:
        >>> merged(nn.Linear(2, 2))
        Linear(in_features=2, out_features=2, bias=True)
    """
    if has_adapters(model):
        try:
            model = model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
        except Exception as error:  # prompts, for example, are no part of a weight
            raise ArgumentError(f"PEFT cannot merge the adapters of this kind: {error}") from error
    for name, layer in list(model.named_modules()):
        if "base_layer" in layer._modules and callable(getattr(layer, "get_base_layer", None)):
            layer.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            model.get_submodule(parent)._modules[own] = layer.get_base_layer()
    return model
