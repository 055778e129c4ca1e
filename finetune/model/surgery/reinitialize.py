"""Reinitialize a pretrained model as if it had been built without pretrained weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from finetune.errors import ArgumentError
from finetune.model.families import family_of
from finetune.model.surgery.adapters import has_adapters


def fresh_weights(model: nn.Module, like: nn.Module | None = None) -> dict[str, Tensor]:
    """Return a state dict with random weights and initial running statistics. `model` is not changed.

    Weights are drawn by each module's `reset_parameters`, or by the model's family if it has its own way.

    Args:
        model: The model.
        like: The same architecture built without pretraining, whose weights are preferred if the name and
            shape match.

    Raises:
        ArgumentError: If a parameter cannot be reinitialized, or the model has adapters.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> _ = norm.running_mean.fill_(5)
        >>> fresh_weights(norm)["running_mean"]
        tensor([0., 0.])
    """
    if has_adapters(model):
        raise ArgumentError(
            "A model with PEFT adapters cannot start from scratch, because its adapters belong to the current weights. "
            "Pass FineTuner the model without adapters."
        )
    twin = copy.deepcopy(model)
    made = {} if like is None else like.state_dict()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                parameter.fill_(torch.nan)  # marks the parameters that nothing resets
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
            f"{len(left)} parameters cannot be reinitialized, the first is {left[0]!r} of a {owner} without "
            f"reset_parameters. Add a reset_parameters() method to that class, or build a new model and train it with "
            f"strategy='full_finetune'."
        )
