"""Freeze, unfreeze, and the train mode that keeps what is frozen in eval.

The freeze state is the model's own `requires_grad` and nothing beside it, so a model frozen by hand
is frozen here too. What follows from it, which module runs in eval mode, is derived at each
`train()` and never stored.

A frozen batch norm in train mode still moves its statistics, and a frozen dropout still adds noise;
so frozen modules stay in eval mode, as Keras does (https://keras.io/guides/transfer_learning/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.model.patterns import Patterns, select


def freeze(model: nn.Module, patterns: Patterns) -> None:
    """Freeze what `patterns` name: no gradient, no update, eval mode."""
    for parameter in select(model, patterns).values():
        _set_trains(parameter, False)


def freeze_all_but(model: nn.Module, patterns: Patterns) -> None:
    """Freeze everything that `patterns` do not name, and leave what they name as it is."""
    kept = {id(parameter) for parameter in select(model, patterns).values()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            _set_trains(parameter, False)


def unfreeze(model: nn.Module, patterns: Patterns | None = None) -> None:
    """Make what `patterns` name trainable; everything if None."""
    chosen = model.parameters() if patterns is None else select(model, patterns).values()
    for parameter in chosen:
        _set_trains(parameter, True)


def train_only(model: nn.Module, patterns: Patterns) -> None:
    """Make exactly what `patterns` name trainable, and freeze every other parameter."""
    unfreeze(model, patterns)
    freeze_all_but(model, patterns)


@contextmanager
def freeze_state_restored(model: nn.Module) -> Iterator[None]:
    """Give every parameter its present `requires_grad` back at the end."""
    states = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in states:
            _set_trains(parameter, requires_grad)


def set_frozen(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze exactly the parameters of these full names, as a checkpoint remembers them."""
    frozen = set(names)
    for name, parameter in model.named_parameters():
        _set_trains(parameter, name not in frozen)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by full name, each once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that must stay in eval mode at the present freeze state.

    A module that holds parameters, its own or below it, is frozen when all of them are. One that
    holds none follows its surroundings: the nearest module around it that does, if that is wholly
    frozen or wholly trainable. In between, what keeps statistics (a batch norm with `affine=False`)
    belongs to the layer before it, and what regularises (a dropout) to the layer it feeds.
    """
    return list(_frozen_below(model, fallback=False))


def moving_statistics(model: nn.Module) -> list[Tensor]:
    """Return the buffers that a forward pass in train mode may move."""
    frozen = set(frozen_modules(model))
    moving = (module for module in model.modules() if module not in frozen)
    return [buffer for module in moving for buffer in module.buffers(recurse=False)]


def hold_frozen_in_eval(model: nn.Module) -> None:
    """Make every later `model.train()` leave the frozen modules in eval mode.

    The override is an attribute of this one instance; it survives `deepcopy` and pickling.
    """
    model.train = partial(_train, model)  # type: ignore[method-assign]


def train_mode(model: nn.Module) -> None:
    """Put what trains in train mode and what is frozen in eval mode."""
    _train(model)


def eval_mode(model: nn.Module) -> None:
    """Put every module in eval mode."""
    _train(model, mode=False)


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Give every module its present train or eval mode back at the end, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def single_sample(model: nn.Module) -> Iterator[None]:
    """Let a batch of one pass: batch norms in train mode use their running statistics meanwhile.

    One sample has no batch statistics; torch raises where it also has no spatial extent.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    norms = [norm for norm in norms if norm.running_mean is not None]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def _set_trains(parameter: nn.Parameter, trains: bool) -> None:
    differentiable = parameter.is_floating_point() or parameter.is_complex()  # integers are quantised weights
    parameter.requires_grad_(trains and differentiable)
    if not trains:
        parameter.grad = None  # a zero gradient would still let weight decay and momentum move it


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    type(model).train(model, mode)
    if mode:
        for module in frozen_modules(model):
            module.training = False
    return model


def _frozen_below(module: nn.Module, fallback: bool) -> Iterator[nn.Module]:
    """Yield the frozen modules of this tree; `fallback` holds where no parameter decides."""
    state = _state(module)
    frozen = fallback if state is None else state == {False}
    if frozen:
        yield module
    children = list(module.children())
    for position, child in enumerate(children):
        if state is not None and len(state) == 2 and _state(child) is None:
            yield from _frozen_below(child, _neighbour_is_frozen(children, position))
        else:
            yield from _frozen_below(child, frozen)


def _state(module: nn.Module) -> set[bool] | None:
    """Return which values `requires_grad` takes below a module; None if it holds no parameter."""
    return {parameter.requires_grad for parameter in module.parameters()} or None


def _neighbour_is_frozen(children: list[nn.Module], position: int) -> bool:
    """Decide for a child without parameters inside a partly frozen module."""
    keeps_statistics = any(True for _ in children[position].buffers())
    before, after = children[:position][::-1], children[position + 1 :]
    nearest = [(child, -1) for child in before], [(child, 0) for child in after]
    for neighbour, edge in chain(*nearest) if keeps_statistics else chain(*reversed(nearest)):
        own = [module for module in neighbour.modules() if next(module.parameters(recurse=False), None) is not None]
        if own:  # of several layers the one that is next to it
            return not any(parameter.requires_grad for parameter in own[edge].parameters(recurse=False))
    return False
