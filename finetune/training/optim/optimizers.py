"""Parameter groups by name, and the optimizers over them.

The real learning rate stands in each group, and the trainable parameters are exactly the optimizer's,
each once and by identity, however the optimizer came about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.errors import ArgumentError, nearest
from finetune.model.freezing import trainable
from finetune.model.stages import Stage, is_norm
from finetune.training.optim.rates import Rate, default_rate, rates

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]

_NAMED = ("adamw", "sgd")


def build_optimizer(
    model: nn.Module,
    stages: Sequence[Stage],
    optimizer: str | OptimizerFactory,
    lr: Rate | None,
    weight_decay: float,
) -> Optimizer:
    """Build an optimizer over the trainable parameters.

    Groups are named after the stage, or after the pattern of `lr` that gave the rate; weights that
    decay and those that do not are two groups with the same name.

    Args:
        stages: all of the model's, from the stem to the head.
        lr: as `rates` takes it; None for what suits the optimizer.
        weight_decay: of everything but norm weights and biases.

    Raises:
        ArgumentError: a rate or the optimizer makes no sense, or nothing trains.
        PatternError: a pattern of `lr` matches nothing.
    """
    chosen = default_rate(optimizer, model, stages) if lr is None else lr
    groups = parameter_groups(model, stages, chosen, weight_decay)
    if not groups:
        raise ArgumentError(
            "Nothing is trainable: every parameter is frozen. Unfreeze some with unfreeze(...), or the head with "
            "replace_head(n)."
        )
    made = _make(optimizer, groups)
    check_parameters(model, made)
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]  # what the schedule's factor applies to
    return made


def parameter_groups(model: nn.Module, stages: Sequence[Stage], lr: Rate, weight_decay: float) -> list[dict[str, Any]]:
    """Partition the trainable parameters into groups by name and by whether they decay."""
    parameters = trainable(model)
    decaying = decayed(model)
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, (group_name, rate) in rates(model, stages, lr).items():
        decays = name in decaying
        group = groups.setdefault(
            (group_name, decays),
            {
                "params": [],
                "name": group_name,
                "names": [],
                "lr": rate,
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameters[name])
        group["names"].append(name)
    return list(groups.values())


def planned_rates(optimizer: Optimizer) -> dict[str, tuple[str, float]]:
    """Return the group name and the rate before any schedule, by parameter name."""
    groups = optimizer.param_groups
    return {name: (group["name"], group["initial_lr"]) for group in groups for name in group.get("names", ())}


def decayed(model: nn.Module) -> set[str]:
    """Return the full names of the parameters that weight decay applies to: not biases, not those of norms.

    Most of these are the 1-d ones; a layer norm over [C, H, W] has more dimensions.
    """
    norms = {id(weight) for module in model.modules() if is_norm(module) for weight in module.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in norms and name.rpartition(".")[2] != "bias"
    }


def without_decay(optimizer: Optimizer) -> None:
    """Take the weight decay from an optimizer, for what does it in another way."""
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0


def carry_state(old: Optimizer, new: Optimizer) -> None:
    """Give the parameters that trained already their moments back; new ones start fresh."""
    for group in new.param_groups:
        for parameter in group["params"]:
            if parameter in old.state:
                new.state[parameter] = old.state[parameter]


def state_by_name(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the optimizer's state of every parameter, by the parameter's full name."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_state(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Put back what `state_by_name` returned, on the device that the optimizer wants it on."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    known = {index: dict(state[name]) for index, name in enumerate(held) if name in state}
    if known:
        present = optimizer.state_dict()
        optimizer.load_state_dict({**present, "state": present["state"] | known})
        _lay_out_as_parameters(optimizer)


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give moments the layout of their parameter, as when they are made: fused optimizers pair values by place."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    """Check that the optimizer's parameters are the trainable ones, each once, by identity.

    Raises:
        ArgumentError: they are not.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted = {id(parameter) for parameter in trainable(model).values()}
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    missing = [names[key] for key in wanted - set(held)]
    strange = [names.get(key, "a tensor that is not the model's") for key in set(held) - wanted]
    if missing or strange or len(held) != len(set(held)):
        raise ArgumentError(
            f"The optimizer does not hold exactly the trainable parameters: missing {sorted(missing)[:3]}, frozen or "
            f"foreign {sorted(strange)[:3]}. An optimizer factory takes the parameter groups and passes all of them "
            f"on, as lambda groups: torch.optim.SGD(groups, momentum=0.9)."
        )


def _make(optimizer: str | OptimizerFactory, groups: list[dict[str, Any]]) -> Optimizer:
    if callable(optimizer):
        made = optimizer(groups)
        if not isinstance(made, Optimizer):
            raise ArgumentError(f"The optimizer factory should return a torch Optimizer, but returned {made!r}.")
        return made
    fused = all(
        parameter.device.type in ("cpu", "cuda") and torch.is_floating_point(parameter)
        for group in groups
        for parameter in group["params"]
    )
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    if optimizer == "sgd":
        sgd = torch.optim.SGD(groups, momentum=0.9, fused=fused)
        for group in groups if fused else ():  # the fused one takes no group of which a part has a momentum
            for parameter in group["params"]:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    raise ArgumentError(
        f"There is no optimizer {optimizer!r}.{nearest(str(optimizer), _NAMED)} Expected "
        f"{', '.join(map(repr, _NAMED))}, or a function of parameter groups such as torch.optim.Adam."
    )
