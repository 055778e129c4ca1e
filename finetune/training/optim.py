"""Parameter groups by name, and the optimizers over them.

The real learning rate stands in each group, and the trainable parameters are exactly the optimizer's,
each once and by identity, however the optimizer came about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from finetune.errors import ArgumentError, nearest
from finetune.model.freezing import trainable
from finetune.model.patterns import select
from finetune.model.stages import Stage, trainable_stages

Rate = float | tuple[float, float] | Mapping[str, float]
OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# Per optimizer, the rates of the first stage that trains and of the head, where the user names none.
_DEFAULT_RATES = {"adamw": (1e-4, 1e-3), "sgd": (1e-3, 1e-2)}


def build_optimizer(
    model: nn.Module,
    head: Sequence[str],
    optimizer: str | OptimizerFactory,
    lr: Rate | None,
    weight_decay: float,
) -> Optimizer:
    """Build an optimizer over the trainable parameters.

    Groups are named after the stage, or after the pattern of `lr` that gave the rate; weights that
    decay and those that do not are two groups with the same name.

    Args:
        lr: one rate; a pair `(first, last)` spread geometrically over the stages that train; or a
            mapping of pattern to rate, the last that matches wins.
        weight_decay: of everything but norm weights and biases.

    Raises:
        ArgumentError: a rate or the optimizer makes no sense, or nothing trains.
        PatternError: a pattern of `lr` matches nothing.
    """
    groups = parameter_groups(model, head, default_rate(optimizer) if lr is None else lr, weight_decay)
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


def default_rate(optimizer: str | OptimizerFactory) -> tuple[float, float]:
    """Return the rates used where the user gives none."""
    return _DEFAULT_RATES.get(optimizer if isinstance(optimizer, str) else "", _DEFAULT_RATES["adamw"])


def parameter_groups(
    model: nn.Module, head: Sequence[str], lr: Rate, weight_decay: float
) -> list[dict[str, Any]]:
    """Partition the trainable parameters into groups by name and by whether they decay."""
    parameters = trainable(model)
    decaying = decayed(model)
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, (group_name, rate) in rates(model, head, lr).items():
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


def rates(model: nn.Module, head: Sequence[str], lr: Rate) -> dict[str, tuple[str, float]]:
    """Return the group's name and the learning rate of every trainable parameter, by full name."""
    if isinstance(lr, Mapping):
        return _rates_by_pattern(model, lr)
    training = trainable_stages(model, head)
    spread = _spread(training, lr)
    return {name: (stage.name, spread[stage.name]) for stage in training for name in stage.parameters}


def decayed(model: nn.Module) -> set[str]:
    """Return the full names of the parameters that weight decay applies to: not biases, not those of norms.

    Most of these are the 1-d ones; a layer norm over [C, H, W] has more dimensions.
    """
    norms = {id(weight) for module in model.modules() if isinstance(module, _NORMS) for weight in module.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in norms and name.rpartition(".")[2] != "bias"
    }


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
        optimizer.load_state_dict({**optimizer.state_dict(), "state": known})


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


def _spread(training: Sequence[Stage], lr: float | tuple[float, float]) -> dict[str, float]:
    if isinstance(lr, (int, float)):
        return {stage.name: _checked(float(lr)) for stage in training}
    if not isinstance(lr, (tuple, list)) or len(lr) != 2:
        raise ArgumentError(
            f"Expected lr to be a number, a pair (first stage, head), or a mapping of pattern to number, but got "
            f"{lr!r}. To set more than two rates, name them: lr={{'layer4': 1e-4, 'fc': 1e-3}}."
        )
    first, last = (_checked(rate) for rate in lr)
    steps = max(1, len(training) - 1)
    shares = [(len(training) - 1 - depth) / steps for depth in range(len(training))]
    return {
        stage.name: first if share == 1 else last * (first / last) ** share
        for stage, share in zip(training, shares, strict=True)
    }


def _rates_by_pattern(model: nn.Module, lr: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    training = trainable(model)
    chosen: dict[str, tuple[str, float]] = {}
    for pattern, rate in lr.items():
        for name in select(model, pattern):
            chosen[name] = (pattern, _checked(rate))
    missing = [name for name in training if name not in chosen]
    if missing:
        raise ArgumentError(
            f"lr gives no rate to {len(missing)} trainable parameters, the first {missing[0]!r}. Name them, freeze "
            f"them, or begin the mapping with a rate for all the rest: {{'*': 1e-4, ...}}."
        )
    return {name: chosen[name] for name in training}


def _checked(rate: float) -> float:
    if not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
        raise ArgumentError(f"Expected a learning rate above 0, but got {rate!r}.")
    return float(rate)


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
        return torch.optim.SGD(groups, momentum=0.9, fused=fused)
    raise ArgumentError(
        f"There is no optimizer {optimizer!r}.{nearest(str(optimizer), _DEFAULT_RATES)} Expected "
        f"{', '.join(map(repr, _DEFAULT_RATES))}, or a function of parameter groups such as torch.optim.Adam."
    )
