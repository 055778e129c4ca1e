"""Optimizers by name, and the named parameter groups that they update.

`OPTIMIZERS` is the table of names; a new optimizer is one entry. Each group carries its own learning rate, and an
optimizer always holds exactly the trainable parameters, each once and by identity.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.devices.device import has_own_memory
from finetune.distributed.divided import is_divided, placed
from finetune.errors import ArgumentError, is_number, one_of, reason
from finetune.model.freezing import trainable
from finetune.model.stages import Stage, is_norm
from finetune.training.numerics.precision import state_after_step, try_step
from finetune.training.optim.rates import Rate, depth_aware_rates, rates, sgd_rates

ParameterGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParameterGroups], Optimizer]

_SIZES = (2, 3, 5, 7, 11, 13)  # of a stand-in, each another than those of the values that an optimizer keeps

# Weight decay without another of the user or of a factory.
WEIGHT_DECAY = 0.01

_EXAMPLE = "function of parameter groups, such as lambda groups: torch.optim.SGD(groups, momentum=0.9)"

log = logging.getLogger("finetune")


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
        optimizer: Name from `OPTIMIZERS`, or a factory. Without a rate of its own, the rates suit optimizers like Adam.
        stages: All stages of the model, stem first.
    """
    if callable(optimizer):
        return _tried(optimizer, model, stages).get("lr") or depth_aware_rates(model, stages)
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
        weight_decay: Weight decay for all parameters but biases and norm weights. The default gives way to that of a
            factory.

    Raises:
        ArgumentError: If a rate or the optimizer is invalid, or nothing is trainable.
        PatternError: If a pattern of `lr` matches nothing.
    """
    chosen = default_rate(optimizer, model, stages) if lr is None else lr
    if callable(optimizer) and weight_decay == WEIGHT_DECAY:
        weight_decay = _tried(optimizer, model, stages).get("weight_decay", weight_decay)
    groups = parameter_groups(model, stages, chosen, weight_decay)
    if not groups:
        raise ArgumentError(
            "Nothing is trainable: every parameter is frozen. Unfreeze some with unfreeze(...), or add a new head with "
            "replace_head(n)."
        )
    made = _made(_factory(optimizer), groups)
    check_parameters(model, made)
    _check_layouts(model, made)
    for group in made.param_groups:
        group["initial_lr"] = float(group["lr"])  # the schedule multiplies this rate
    if callable(optimizer):
        _check_rates(rates_of(model, made), groups, asked=lr is not None)
        _warn_of_decay(made, groups)
    return made


def say_values(optimizer: str | OptimizerFactory, made: Optimizer, lr: Rate | None, weight_decay: float) -> None:
    """Log which values of a factory are used, and which give way to those of the user or to the default rates.

    Args:
        optimizer: The factory; nothing is said of a name, or of a class, which names no values.
        made: An optimizer from it.
        lr: Learning rates of the user or the strategy, or None.
        weight_decay: Weight decay of the user, or the default.
    """
    if isinstance(optimizer, (str, type)):
        return
    named = _named_by(made)
    used = {"lr": lr is None, "weight_decay": weight_decay == WEIGHT_DECAY}
    for key, value in named.items():
        if used[key]:
            log.info("optimizer: %s=%g from the factory", key, value)
        else:
            log.info(
                "optimizer: %s=%g of the factory is replaced by the %s of fit, FineTuner or strategy", key, value, key
            )
    if lr is None and "lr" not in named and is_number(usual := made.defaults.get("lr")):
        log.info("optimizer: default rates by depth in place of lr=%g; lr=... sets others", usual)


def parameter_groups(model: nn.Module, stages: Sequence[Stage], lr: Rate, weight_decay: float) -> ParameterGroups:
    """Partition the trainable parameters into groups by name and weight decay."""
    parameters = trainable(model)
    decaying = decayed(model)
    groups: dict[tuple[str, bool, bool], dict[str, Any]] = {}
    for name, (group_name, rate) in rates(model, stages, lr).items():
        decays = name in decaying
        group = groups.setdefault(
            (group_name, decays, is_divided(parameters[name])),  # torch does not update both kinds at once
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


def rates_of(model: nn.Module, optimizer: Optimizer) -> dict[str, tuple[str, float]]:
    """Return the group name and the rate before any schedule, by parameter name.

    The groups of an optimizer from a factory may have no names; they are all called `"all"`.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group.get("name", "all"), group["initial_lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


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


def held_state(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the optimizer's own state per parameter, keyed by the parameter's full name."""
    return {
        name: optimizer.state[parameter] for name, parameter in model.named_parameters() if parameter in optimizer.state
    }


def carry_state(held: Mapping[str, dict[str, Any]], optimizer: Optimizer, model: nn.Module) -> None:
    """Give an optimizer the state of the parameters that another one held, from `held_state`."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if names[parameter] in held:
                optimizer.state[parameter] = held[names[parameter]]


def state_by_name(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return a copy of the optimizer's state per parameter, keyed by the parameter's full name."""
    return {name: dict(state) for name, state in held_state(optimizer, model).items()}


def load_state(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore the state that `state_by_name` returned, on the device where the optimizer expects it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    parameters = dict(model.named_parameters())
    known = {index: _divided(state[name], parameters[name]) for index, name in enumerate(held) if name in state}
    if known:
        present = optimizer.state_dict()
        optimizer.load_state_dict({**present, "state": present["state"] | known})
        _match_parameter_layout(optimizer)


def _divided(state: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Return the state of a parameter, divided among processes if the parameter is."""
    like = {key: isinstance(value, Tensor) and value.shape == parameter.shape for key, value in state.items()}
    return {key: placed(value, parameter) if like[key] else value for key, value in state.items()}


def check_optimizer(
    state: Mapping[str, Mapping[str, Any]], optimizer: str | OptimizerFactory, parameters: Mapping[str, Tensor]
) -> None:
    """Check that an optimizer can go on with a state, by what it keeps for stand-ins of the parameters.

    Args:
        state: State by name of the parameters.
        optimizer: Name or factory of the optimizer.
        parameters: Parameters by name, or tensors like them.

    Raises:
        ValueError: If it cannot.
    """
    tried: dict[int, Mapping[str, Any]] = {}
    for name, saved in state.items():
        like = parameters.get(name)
        if not isinstance(like, Tensor):
            raise ValueError(f"the optimizer has a state of {name[:100]}, which is no weight")
        if like.dim() not in tried:
            tried[like.dim()] = kept_state(optimizer, _SIZES[: like.dim()])
        for key, kept in tried[like.dim()].items():
            if not _fits(saved.get(key), kept, dict(zip(_SIZES, like.shape, strict=False))):
                raise ValueError(f"the optimizer's {key} of {name} is missing, or not like the weight")


def kept_state(optimizer: str | OptimizerFactory, sizes: Sequence[int]) -> Mapping[str, Any]:
    """Return the state that an optimizer keeps for a parameter of these sizes; empty if it cannot be tried.

    Example:
        >>> {name: list(value.shape) for name, value in kept_state("adamw", (2, 3)).items()}
        {'step': [], 'exp_avg': [2, 3], 'exp_avg_sq': [2, 3]}
    """
    group = _stand_in(sizes)
    with suppress(Exception):  # a factory may want other parameters or gradients
        return state_after_step(_factory(optimizer)([group]), group["params"][0])
    return {}


def built_with(optimizer: str | OptimizerFactory) -> dict[str, Any]:
    """Return the class and the default values of the optimizers that a name or a factory makes; empty if it fails.

    Example:
        >>> built_with(lambda groups: torch.optim.SGD(groups, momentum=0.5))["momentum"]
        0.5
    """
    with suppress(Exception):  # a factory may want other parameters
        made = _factory(optimizer)([_stand_in((2, 3))])
        return {"class": type(made).__name__, **made.defaults}
    return {}


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


def _stand_in(sizes: Sequence[int]) -> dict[str, Any]:
    """Return a group of one parameter of these sizes."""
    parameter = nn.Parameter(torch.zeros(tuple(sizes)))
    return {"params": [parameter], "name": "", "names": [""], "lr": 0.0, "weight_decay": 0.0}


def _factory(optimizer: str | OptimizerFactory) -> OptimizerFactory:
    if callable(optimizer):
        return optimizer
    if isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise ArgumentError(
            f"The optimizer is a finished {kind}. Expected one of {', '.join(OPTIMIZERS)}, or a function of parameter "
            f"groups such as torch.optim.{kind}, without parentheses."
        )
    others = "a function of parameter groups such as torch.optim.Adam"
    return OPTIMIZERS[one_of("optimizer", optimizer, OPTIMIZERS, others)].build


def _made(factory: OptimizerFactory, groups: ParameterGroups) -> Optimizer:
    """Return the optimizer that a factory makes of copies of the groups.

    Raises:
        ArgumentError: If the factory fails, or returns no optimizer that steps without a closure.
    """
    _check_closure(getattr(factory, "func", factory))  # a partial's
    try:
        made = factory([{**group, "params": [*group["params"]]} for group in groups])
    except Exception as error:  # a user's factory can raise anything
        raise ArgumentError(f"The optimizer factory failed: {reason(error)}. Expected a {_EXAMPLE}.") from error
    if not isinstance(made, Optimizer):
        raise ArgumentError(
            f"Expected the optimizer factory to return a torch Optimizer, but got {made!r}. Pass a {_EXAMPLE}."
        )
    _check_closure(type(made))
    return made


def _tried(factory: OptimizerFactory, model: nn.Module, stages: Sequence[Stage]) -> dict[str, float]:
    """Return the values that a factory names, as in `_named_by`."""
    groups = parameter_groups(model, stages, depth_aware_rates(model, stages), WEIGHT_DECAY)
    return _named_by(_made(factory, groups)) if groups else {}


def _named_by(made: Optimizer) -> dict[str, float]:
    """Return the `lr` and the `weight_decay` that an optimizer was made with, if they are no defaults of its class."""
    usual = inspect.signature(type(made)).parameters
    values = {key: made.defaults.get(key) for key in ("lr", "weight_decay") if key in usual}
    return {key: float(value) for key, value in values.items() if value is not None and value != usual[key].default}


def _check_closure(kind: Any) -> None:
    """Check that a class of optimizers steps without a closure; a factory of another kind is unknown.

    Raises:
        ArgumentError: If it needs one, as L-BFGS does.
    """
    step = getattr(kind, "step", None)
    closure = None if step is None else inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ArgumentError(
            f"{kind.__name__} computes the loss several times per step, but fit does so once. Pass an optimizer "
            f"whose step needs no closure, such as torch.optim.Adam."
        )


def _check_layouts(model: nn.Module, made: Optimizer) -> None:
    """Check that an optimizer steps on the gradients of the model, dense or sparse, as of `nn.Embedding(sparse=True)`.

    Raises:
        ArgumentError: If it does not.
    """
    layers = {
        name or type(layer).__name__: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.sparse and layer.weight.requires_grad
    }
    sparse = {id(layer.weight) for layer in layers.values()}
    if not sparse and not isinstance(made, torch.optim.SparseAdam):
        return
    try:
        try_step(made, sparse)
    except Exception as error:  # whatever an optimizer raises on a gradient of another layout
        fix = "Pass another optimizer, such as torch.optim.Adam"
        if sparse:
            fix = f"Set sparse=False on {', '.join(layers)}, with an optimizer such as torch.optim.Adam"
        raise ArgumentError(
            f"{type(made).__name__} does not step on the gradients of this model: {reason(error).rstrip('.')}. {fix}."
        ) from error


def _check_rates(held: Mapping[str, tuple[str, float]], groups: ParameterGroups, *, asked: bool) -> None:
    """Check that an optimizer from a factory trains each parameter at the rate of its group.

    The factory's rates hold if the user asked for none, and are logged.

    Raises:
        ArgumentError: If a rate that the user asked for is void.
    """
    planned = {name: group["lr"] for group in groups for name in group["names"]}
    other = [name for name, rate in planned.items() if not math.isclose(held[name][1], rate, rel_tol=1e-6)]
    if not other:
        return
    name, found = other[0], held[other[0]][1]
    if asked:
        raise ArgumentError(
            f"The optimizer factory makes lr void for {len(other)} parameters: {name} trains at {found:g} instead of "
            f"{planned[name]:g}. Pass every parameter group on, as in lambda groups: torch.optim.SGD(groups, "
            f"momentum=0.9), or omit lr to train at the factory's rates."
        )
    log.info("optimizer: at the factory's rates, such as %g for %s", found, name)


def _warn_of_decay(made: Optimizer, groups: ParameterGroups) -> None:
    """Warn if an optimizer from a factory has another weight decay for a parameter than its group."""
    held = {parameter: group.get("weight_decay") for group in made.param_groups for parameter in group["params"]}
    other = [
        (name, held[parameter], group["weight_decay"])
        for group in groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if held[parameter] != group["weight_decay"]
    ]
    if other:
        log.warning(
            "The optimizer factory changes the weight decay of %d parameters: %s has %s instead of %s. Pass every "
            "parameter group on to keep it, and biases and norm weights free of it.",
            len(other),
            *other[0],
        )


def _can_fuse(groups: ParameterGroups) -> bool:
    """Return whether torch has a fused kernel for every parameter."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    known = (_has_fused_kernels(p.device) and torch.is_floating_point(p) for p in parameters)
    return all(known) and not any(map(is_divided, parameters))


def _has_fused_kernels(device: torch.device) -> bool:
    return device.type == "cpu" or has_own_memory(device)


def _match_parameter_layout(optimizer: Optimizer) -> None:
    """Give each state tensor the memory layout of its parameter, because fused kernels pair values by position."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _fits(value: Any, kept: Any, sizes: Mapping[int, int]) -> bool:
    """Return whether a value is like the one kept for a stand-in, with the parameter's sizes in place of its own."""
    if not isinstance(kept, Tensor):
        return kept is None or (not isinstance(value, Tensor) and is_number(value) == is_number(kept))
    shape = tuple(sizes.get(size, size) for size in kept.shape)
    same = isinstance(value, Tensor) and value.is_floating_point() == kept.is_floating_point()
    return same and tuple(value.shape) == shape
