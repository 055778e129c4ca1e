"""Optimizers by name, and the named parameter groups that they update.

`OPTIMIZERS` is the table of names; a new optimizer is one entry. Each group carries its own learning rate, and an
optimizer always holds exactly the trainable parameters, each once and by identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.errors import ArgumentError, nearest
from finetune.model.freezing import trainable
from finetune.model.stages import Stage, is_norm
from finetune.training.optim.rates import Rate, depth_aware_rates, rates, sgd_rates

ParameterGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParameterGroups], Optimizer]


@dataclass(frozen=True)
class NamedOptimizer:
    """An optimizer that `FineTuner(optimizer=...)` accepts by name.

    Attributes:
        build: Function from parameter groups to an optimizer. To combine several, return one `Optimizer` whose
            `step` runs them all.
        default_lr: Function from the model and its stages, stem first, to the learning rates to use if `fit` gets
            none. The default suits optimizers like Adam, whose updates do not scale with the gradient.

    Example:
        >>> OPTIMIZERS["adamax"] = NamedOptimizer(torch.optim.Adamax)
        >>> from finetune import FineTuner
        >>> tuner = FineTuner(nn.Linear(4, 2), optimizer="adamax")
        >>> del OPTIMIZERS["adamax"]
    """

    build: OptimizerFactory
    default_lr: Callable[[nn.Module, Sequence[Stage]], Rate] = depth_aware_rates


def _adamw(groups: ParameterGroups) -> Optimizer:
    return torch.optim.AdamW(groups, fused=_can_fuse(groups))


def _sgd(groups: ParameterGroups) -> Optimizer:
    fused = _can_fuse(groups)
    optimizer = torch.optim.SGD(groups, momentum=0.9, fused=fused)
    # Fused SGD rejects a group in which only some parameters have a momentum, as after unfreezing, so all start at 0.
    for group in groups if fused else ():
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


OPTIMIZERS: dict[str, NamedOptimizer] = {
    "adamw": NamedOptimizer(_adamw),
    "sgd": NamedOptimizer(_sgd, default_lr=sgd_rates),
}


def default_rate(optimizer: str | OptimizerFactory, model: nn.Module, stages: Sequence[Stage]) -> Rate:
    """Return the learning rates for an optimizer if the user passes none.

    Args:
        optimizer: Name from `OPTIMIZERS`, or a factory, for which the rates suit optimizers like Adam.
        stages: All stages of the model, stem first.
    """
    named = OPTIMIZERS.get(optimizer) if isinstance(optimizer, str) else None
    return (named.default_lr if named else depth_aware_rates)(model, stages)


def build_optimizer(
    model: nn.Module,
    stages: Sequence[Stage],
    optimizer: str | OptimizerFactory,
    lr: Rate | None,
    weight_decay: float,
) -> Optimizer:
    """Build an optimizer over the trainable parameters.

    Groups are named after the stage, or after the pattern of `lr` that set the rate. Parameters with and without
    weight decay form two groups of the same name.

    Args:
        stages: All stages of the model, stem first.
        lr: Learning rates as in `rates`; None for the defaults of the optimizer.
        weight_decay: Weight decay for all parameters but biases and norm weights.

    Raises:
        ArgumentError: If a rate or the optimizer is invalid, or nothing is trainable.
        PatternError: If a pattern of `lr` matches nothing.
    """
    chosen = default_rate(optimizer, model, stages) if lr is None else lr
    groups = parameter_groups(model, stages, chosen, weight_decay)
    if not groups:
        raise ArgumentError(
            "Nothing is trainable: every parameter is frozen. Unfreeze some with unfreeze(...), or add a new head with "
            "replace_head(n)."
        )
    made = _factory(optimizer)(groups)
    if not isinstance(made, Optimizer):
        raise ArgumentError(f"Expected the optimizer factory to return a torch Optimizer, but got {made!r}.")
    check_parameters(model, made)
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]  # the schedule multiplies this rate
    return made


def parameter_groups(model: nn.Module, stages: Sequence[Stage], lr: Rate, weight_decay: float) -> ParameterGroups:
    """Partition the trainable parameters into groups by name and weight decay."""
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


def planned_rates(
    model: nn.Module, stages: Sequence[Stage], optimizer: str | OptimizerFactory, lr: Rate | None
) -> dict[str, tuple[str, float]]:
    """Return the group name and the rate before any schedule, by parameter name.

    They do not depend on the groups of the optimizer that a factory returns, which may have other names or none.
    """
    return rates(model, stages, default_rate(optimizer, model, stages) if lr is None else lr)


def decayed(model: nn.Module) -> set[str]:
    """Return the full names of the parameters with weight decay: all but biases and norm weights.

    The number of dimensions alone does not decide it: the weight of a layer norm over [C, H, W] has three.
    """
    norms = {id(weight) for module in model.modules() if is_norm(module) for weight in module.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in norms and name.rpartition(".")[2] != "bias"
    }


def without_decay(optimizer: Optimizer) -> None:
    """Switch weight decay off, for a callback that regularizes in its place."""
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0


def carry_state(old: Optimizer, new: Optimizer) -> None:
    """Copy the state of parameters that both optimizers hold to the new one."""
    for group in new.param_groups:
        for parameter in group["params"]:
            if parameter in old.state:
                new.state[parameter] = old.state[parameter]


def state_by_name(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the optimizer's state per parameter, keyed by the parameter's full name."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_state(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore the state that `state_by_name` returned, on the device where the optimizer expects it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    known = {index: dict(state[name]) for index, name in enumerate(held) if name in state}
    if known:
        present = optimizer.state_dict()
        optimizer.load_state_dict({**present, "state": present["state"] | known})
        _match_parameter_layout(optimizer)


def check_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    """Check that an optimizer holds exactly the trainable parameters, each once and by identity.

    Raises:
        ArgumentError: If a parameter is missing, or another tensor is in a group.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = {id(parameter) for parameter in trainable(model).values()}
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    missing = [names[key] for key in expected - set(held)]
    strange = [names.get(key, "a tensor outside the model") for key in set(held) - expected]
    if missing or strange or len(held) != len(set(held)):
        raise ArgumentError(
            f"The optimizer does not hold exactly the trainable parameters: missing {sorted(missing)[:3]}, frozen or "
            f"foreign {sorted(strange)[:3]}. Pass every parameter group on to the optimizer, as in "
            f"lambda groups: torch.optim.SGD(groups, momentum=0.9)."
        )


def _factory(optimizer: str | OptimizerFactory) -> OptimizerFactory:
    if callable(optimizer):
        return optimizer
    if isinstance(optimizer, str) and optimizer in OPTIMIZERS:
        return OPTIMIZERS[optimizer].build
    raise ArgumentError(
        f"There is no optimizer {optimizer!r}.{nearest(str(optimizer), OPTIMIZERS)} Expected "
        f"{', '.join(map(repr, OPTIMIZERS))}, or a function of parameter groups such as torch.optim.Adam."
    )


def _can_fuse(groups: ParameterGroups) -> bool:
    """Return whether torch has a fused kernel for every parameter."""
    parameters = (parameter for group in groups for parameter in group["params"])
    return all(p.device.type in ("cpu", "cuda") and torch.is_floating_point(p) for p in parameters)


def _match_parameter_layout(optimizer: Optimizer) -> None:
    """Give each state tensor the memory layout of its parameter, because fused kernels pair values by position."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
