"""Record a model for a checkpoint: its origin, weights and freeze state, and the changes made to it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetune.checkpoint.schema import ModelRecord
from finetune.digests import sha256
from finetune.model.patterns import check_initialized
from finetune.model.surgery import layer_specs
from finetune.model.surgery.changes import CUSTOM_HEAD, HeadReplacement

log = logging.getLogger("finetune")


def record_head(
    n: int, names: tuple[str, ...], head: Any, made: nn.Module, removed: Iterable[str] = ()
) -> HeadReplacement:
    """Record one call of `replace_head`, so that loading can repeat it.

    Args:
        n: Number of outputs.
        names: Full names of the replaced layers.
        head: The argument of `replace_head`.
        made: The new head.
    """
    if head is not None and not isinstance(head, str):
        head = layer_specs.describe(made) or CUSTOM_HEAD
    behind = (name for name in removed if not any(f"{name}.".startswith(f"{own}.") for own in names))
    return HeadReplacement(n, names, head, tuple(sorted(behind)))


def record_model(model: nn.Module, origin: dict[str, Any] | None, scope: Collection[str] | None = None) -> ModelRecord:
    """Record a model's origin, weights and freeze state.

    Args:
        origin: Description from which `catalog.rebuild` builds the model.
        scope: Names of the parameters that PEFT allows to train. If given, only these and the trainable
            parameters are stored; the rest, the base, is stored as a digest.
    """
    check_initialized(model)
    base = {} if scope is None else _base(model, scope)
    return ModelRecord(
        class_name=type(model).__name__,
        origin=origin,
        frozen=tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad),
        weights={name: value for name, value in model.state_dict().items() if name not in base},
        base=base_digest(base) if base else None,
    )


def warn_of_left_out(attributes: Mapping[str, Any], model: nn.Module, said: frozenset[str]) -> frozenset[str]:
    """Warn of modules and optimizers among a tuner's attributes, which no checkpoint holds.

    Args:
        attributes: Attributes of the tuner.
        model: The model, whose own layers a checkpoint does hold.
        said: Names that a warning has named before.

    Returns:
        All names that a warning has named.
    """
    own = {id(module) for module in model.modules()}
    left = [
        name
        for name, value in attributes.items()
        if isinstance(value, (nn.Module, torch.optim.Optimizer)) and id(value) not in own and name not in said
    ]
    if left:
        log.warning(
            "The checkpoint holds the model and its training, but not the tuner's %s. Make a module that is trained a "
            "part of the model, or save its state_dict() beside the checkpoint.",
            ", ".join(left),
        )
    return said.union(left)


def base_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, dtypes, shapes and values."""
    parts: list[str | Tensor] = []
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {tensor.dtype} {list(tensor.shape)} ", tensor]
    return sha256(*parts)


def _base(model: nn.Module, scope: Collection[str]) -> dict[str, Tensor]:
    """Return the frozen parameters outside `scope`, tied ones under each of their names."""
    kept = {id(p) for name, p in model.named_parameters() if p.requires_grad or name in scope}
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if id(p) not in kept}
