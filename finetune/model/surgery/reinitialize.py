"""Random weights for a model that has trained ones, as it would have been made without them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from finetune.errors import ArgumentError
from finetune.model.families import family_of
from finetune.model.surgery.peft import has_adapters


def fresh_weights(model: nn.Module, like: nn.Module | None = None) -> dict[str, Tensor]:
    """Return a state dict of new random weights, and of running statistics as before training.

    Weights are drawn by each module's own `reset_parameters`, and by the model's family where that has its
    own way. `model` is not changed.

    Args:
        like: the same architecture made without pretraining; what it has under the same name and of
            the same shape is taken from it.

    Raises:
        ArgumentError: a parameter has nothing that resets it, or the model has adapters.
    """
    if has_adapters(model):
        raise ArgumentError(
            "A model with PEFT's adapters cannot start from scratch: they are made for the weights beneath them. Give "
            "FineTuner the model without adapters."
        )
    twin = copy.deepcopy(model)
    made = {} if like is None else like.state_dict()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                parameter.fill_(torch.nan)  # so that what nothing resets is seen
        twin.apply(_reset)
        family_of(twin).reset(twin)
        state = twin.state_dict()
        for name in state.keys() & made.keys():
            if isinstance(made[name], Tensor) and made[name].shape == state[name].shape:
                state[name].copy_(made[name])
    _check_all_reset(twin)
    return state


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()


def _check_all_reset(model: nn.Module) -> None:
    left = [name for name, value in model.named_parameters() if not value.is_floating_point() or value.isnan().any()]
    if left:
        owner = type(model.get_submodule(left[0].rpartition(".")[0])).__name__
        raise ArgumentError(
            f"{len(left)} parameters cannot be reset, the first {left[0]!r} of a {owner} without reset_parameters. "
            f"Give that class a reset_parameters() of its own, or make the model anew and train it with "
            f"'full_finetune'."
        )
