"""Freeze and unfreeze parameters, and keep frozen modules in eval mode.

The freeze state is `requires_grad` and nothing else, so a model frozen by hand is frozen here too. Which
modules run in eval mode is derived from it at each `train()` and never stored.

In train mode a frozen batch norm would still update its running statistics, and a frozen dropout would
still add noise. Frozen modules therefore stay in eval mode, as in Keras
(https://keras.io/guides/transfer_learning/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.distributed.divided import placed
from finetune.errors import DataError
from finetune.model.patterns import Patterns, check_initialized, select


def freeze(model: nn.Module, patterns: Patterns) -> None:
    """Freeze the parameters that match `patterns`: no gradients, no updates, eval mode."""
    for parameter in select(model, patterns).values():
        _set_trainable(parameter, False)


def freeze_all_but(model: nn.Module, patterns: Patterns) -> None:
    """Freeze every parameter that does not match `patterns`, and leave the others alone."""
    kept = {id(parameter) for parameter in select(model, patterns).values()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            _set_trainable(parameter, False)


def unfreeze(model: nn.Module, patterns: Patterns | None = None) -> None:
    """Make the parameters that match `patterns` trainable, or all parameters if None."""
    check_initialized(model)
    chosen = model.parameters() if patterns is None else select(model, patterns).values()
    for parameter in chosen:
        _set_trainable(parameter, True)


def train_only(model: nn.Module, patterns: Patterns) -> None:
    """Make the parameters that match `patterns` trainable and freeze all others."""
    unfreeze(model, patterns)
    freeze_all_but(model, patterns)


@contextmanager
def freeze_state_restored(model: nn.Module) -> Iterator[None]:
    """Restore the `requires_grad` of every parameter on exit."""
    states = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in states:
            _set_trainable(parameter, requires_grad)


def set_frozen(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze the parameters with these full names and make all others trainable."""
    frozen = set(names)
    for name, parameter in model.named_parameters():
        _set_trainable(parameter, name not in frozen)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by full name, tied parameters once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that must stay in eval mode in the current freeze state.

    A module with parameters, including those of its submodules, is frozen if all of them are. A module
    without parameters follows the nearest enclosing module that has some, if that is entirely frozen or
    entirely trainable. In a partly frozen module, a layer with statistics (a batch norm with
    `affine=False`) follows the layer before it, and a regularizer (a dropout) the layer it feeds.
    """
    return list(_frozen_below(model, fallback=False))


def moving_statistics(model: nn.Module) -> list[Tensor]:
    """Return the buffers that a forward pass in train mode may update."""
    frozen = set(frozen_modules(model))
    moving = (module for module in model.modules() if module not in frozen)
    return [buffer for module in moving for buffer in module.buffers(recurse=False)]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy everything that training can change: the trainable parameters and every buffer."""
    changing = {**trainable(model), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in changing.items()}


def restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Copy the values of a snapshot back into the model's tensors."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in saved.items():
            own[name].copy_(placed(value, own[name]))


def hold_frozen_in_eval(model: nn.Module) -> None:
    """Make every later `model.train()` leave the frozen modules in eval mode.

    The override is an attribute of this instance alone. It survives `deepcopy` and pickling.
    """
    model.train = partial(_train, model)  # type: ignore[method-assign]


def train_mode(model: nn.Module) -> None:
    """Put the model in train mode, with its frozen modules in eval mode."""
    _train(model)


def eval_mode(model: nn.Module) -> None:
    """Put every module in eval mode."""
    _train(model, mode=False)


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Restore the train or eval mode of every module on exit, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    nested = [(encoder, encoder.use_nested_tensor) for encoder in _encoders(model)]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for encoder, uses in nested:
            encoder.use_nested_tensor = uses


@contextmanager
def single_sample(model: nn.Module) -> Iterator[None]:
    """Allow a batch of one sample: batch norms in train mode use their running statistics meanwhile.

    A single sample has no batch statistics, and torch raises an error if it has no spatial extent either.
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


def needs_several_samples(model: nn.Module) -> bool:
    """Return whether a batch norm has no running statistics, and so takes those of each batch, also in eval mode."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is None for module in model.modules())


@contextmanager
def single_sample_explained() -> Iterator[None]:
    """Explain torch's error for a batch of one sample whose statistics a norm needs.

    Raises:
        DataError: If a norm has no values to compute statistics of.
    """
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value" not in str(error):  # of an instance norm, no other batch is large enough
            raise
        raise DataError(
            f"Expected more samples in a batch, because a norm of the model computes statistics over the batch, but: "
            f"{error}. Choose a batch size that leaves no batch of one sample, or set drop_last=True in a DataLoader."
        ) from error


def _set_trainable(parameter: nn.Parameter, trainable: bool) -> None:
    differentiable = parameter.is_floating_point() or parameter.is_complex()  # integers are quantized weights
    parameter.requires_grad_(trainable and differentiable)
    if not trainable:
        parameter.grad = None  # with a zero gradient, weight decay and momentum would still move the parameter


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    type(model).train(model, mode)
    if mode:
        for module in frozen_modules(model):
            module.training = False
    for encoder in _encoders(model):
        _hold_dense(encoder)
    return model


def _encoders(model: nn.Module) -> list[Any]:
    """Return torch's transformer encoders that can turn a padded batch into a nested tensor."""
    encoders = (module for module in model.modules() if isinstance(module, nn.TransformerEncoder))
    return [encoder for encoder in encoders if hasattr(encoder, "use_nested_tensor")]


def _hold_dense(encoder: Any) -> None:
    """Keep an encoder from nested tensors while some of its layers train, because those do not accept them.

    torch decides by the first layer alone, which may be frozen and in eval mode.
    """
    allowed = vars(encoder).setdefault("_allows_nested_tensor", encoder.use_nested_tensor)
    encoder.use_nested_tensor = allowed and not any(layer.training for layer in encoder.layers)


def _frozen_below(module: nn.Module, fallback: bool) -> Iterator[nn.Module]:
    """Yield the frozen modules of this tree. Without any parameters, `fallback` decides."""
    state = _state(module)
    frozen = fallback if state is None else state == {False}
    if frozen:
        yield module
    children = list(module.children())
    for position, child in enumerate(children):
        if state is not None and len(state) == 2 and _state(child) is None:
            yield from _frozen_below(child, _neighbor_is_frozen(children, position))
        else:
            yield from _frozen_below(child, frozen)


def _state(module: nn.Module) -> set[bool] | None:
    """Return the values of `requires_grad` within a module, None if it has no parameters."""
    return {parameter.requires_grad for parameter in module.parameters()} or None


def _neighbor_is_frozen(children: list[nn.Module], position: int) -> bool:
    """Return whether a child without parameters, in a partly frozen module, is next to a frozen layer."""
    keeps_statistics = any(True for _ in children[position].buffers())
    before, after = children[:position][::-1], children[position + 1 :]
    nearest = [(child, -1) for child in before], [(child, 0) for child in after]
    for neighbor, edge in chain(*nearest) if keeps_statistics else chain(*reversed(nearest)):
        own = [module for module in neighbor.modules() if next(module.parameters(recurse=False), None) is not None]
        if own:  # the closest layer decides
            return not any(parameter.requires_grad for parameter in own[edge].parameters(recurse=False))
    return False
