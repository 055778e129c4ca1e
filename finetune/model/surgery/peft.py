"""Models that PEFT has given adapters, as by `get_peft_model(model, LoraConfig())` (https://huggingface.co/docs/peft).

PEFT freezes the model it is given and trains what it added: adapters, and copies of the modules named by
`modules_to_save`. PEFT is imported only for a model of its making, and where LoRA is asked for.

`add_lora` has PEFT put its LoRA layers into the model itself, which so stays the user's own object; to all else here
they are layers like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from finetune.errors import ArgumentError, HeadError
from finetune.model.freezing import freeze_state_restored, trainable

# What LoRA's paper calls alpha / r, the factor on an adapter's output (arXiv 2106.09685).
_LORA_SCALE = 2


def has_adapters(model: nn.Module) -> bool:
    """Tell whether PEFT made this model."""
    return any(cls.__name__ == "PeftModel" and cls.__module__.split(".")[0] == "peft" for cls in type(model).__mro__)


def scope(model: nn.Module) -> set[str] | None:
    """Return the full names of all that "everything" means: what PEFT trains and what trains now; None without PEFT."""
    if not has_adapters(model):
        return None
    return saved_by_peft(model) | trainable(model).keys()


def saved_by_peft(model: nn.Module) -> set[str]:
    """Return the full names of the parameters that PEFT saves of its active adapter."""
    from peft import get_peft_model_state_dict

    state = model.state_dict(keep_vars=True)
    saved = get_peft_model_state_dict(model, state, adapter_name=str(model.active_adapter), save_embedding_layers=False)
    kept = {id(value) for value in saved.values()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in kept}


def base(model: nn.Module) -> nn.Module:
    """Return the model beneath PEFT's adapters; the model itself where there are none."""
    return base_of(model)[1] if has_adapters(model) else model


def base_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the full name of the model that PEFT was given, and that model."""
    base = model.get_base_model()  # type: ignore[operator]
    return next((name, module) for name, module in model.named_modules() if module is base)


def active_name(model: nn.Module, name: str) -> str:
    """Return the full name of what runs in the place of a module: an adapted layer, or the copy that trains."""
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
    """Refuse to change the base of a model with adapters, which PEFT does not save.

    Raises:
        ArgumentError, HeadError: as `error` says, if PEFT made the model.
    """
    if has_adapters(model):
        raise error(
            f"The model has PEFT's adapters, which PEFT saves without the model beneath them; changing that now would "
            f"be lost. Change it first: get_peft_model({argument}.model, config)."
        )


def lora_targets(model: nn.Module, heads: Sequence[str]) -> list[str]:
    """Return the full names of the layers that get LoRA: all linear ones but the heads, else the convolutions.

    Raises:
        ArgumentError: there are neither.
    """
    found: dict[type[nn.Module], list[str]] = {nn.Linear: [], nn.Conv2d: []}
    for name, module in model.named_modules():
        in_head = any(f"{name}.".startswith(f"{head}.") for head in heads)
        if type(module) in found and not in_head and getattr(module, "groups", 1) == 1:  # depthwise ones are small
            found[type(module)].append(name)
    names = found[nn.Linear] or found[nn.Conv2d]
    if not names:
        raise ArgumentError(
            f"{type(model).__name__} has no linear layer and no convolution beside its head for LoRA to adapt. Choose "
            f"another strategy."
        )
    return names


def add_lora(model: nn.Module, layers: Sequence[str], rank: int) -> Callable[[], None]:
    """Give layers of the model LoRA adapters of a rank, which change no output yet; return what undoes it.

    The weights that were there keep their freeze state; names within an adapted layer change, as from `weight` to
    `base_layer.weight`.

    Raises:
        ArgumentError: PEFT is not installed, or does not adapt these layers.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise ArgumentError("LoRA needs the package peft: pip install peft.") from error
    config = LoraConfig(r=rank, lora_alpha=_LORA_SCALE * rank, target_modules=list(layers))
    with freeze_state_restored(model):
        try:
            added = LoraModel(model, config, "default")
        except ValueError as error:
            raise ArgumentError(f"PEFT cannot give {type(model).__name__} LoRA adapters: {error}") from error

    def undo() -> None:
        with freeze_state_restored(model):
            added.unload()

    return undo
