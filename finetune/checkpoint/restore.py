"""Restore the model of a checkpoint: build it by name, repeat its changes and load its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finetune.checkpoint import schema
from finetune.checkpoint.record import base_digest
from finetune.checkpoint.schema import Checkpoint
from finetune.data.randomness import seeded
from finetune.errors import CheckpointError, FineTuneError, HeadError, reason, whole_number
from finetune.model import catalog, freezing
from finetune.model.inspection.allocation import AllocationLimit
from finetune.model.patterns import check_initialized
from finetune.model.surgery import adapters, heads, input_channels, layer_specs
from finetune.model.surgery.changes import CUSTOM_HEAD, HeadReplacement, InputAdaptation, LoraAdapters, ModelChange
from finetune.model.surgery.copies import shared_copy
from finetune.model.surgery.head_search import find_head
from finetune.model.weights import load_state

log = logging.getLogger("finetune")

# A checkpoint may ask for ten times the memory that its weights take, as for a large head that a small one has
# replaced, and for this much more.
_SPARE_BYTES = 128 << 20
_TIMES = 10

# Most layers that changes name, which takes milliseconds each, and most changes that run or rebuild the model.
_MOST_LAYERS, _MOST_SLOW = 1000, 8


def rebuild(checkpoint: Checkpoint) -> nn.Module:
    """Build the model of a checkpoint by name, with its changes, without network access.

    Raises:
        CheckpointError: If the model has no name, or its head is a custom module.
    """
    if checkpoint.model.origin is None:
        raise CheckpointError(
            f"{checkpoint.path} holds your custom {checkpoint.model.class_name}, which cannot be built from its "
            f"name. Build it and pass it as model=."
        )
    with seeded("checkpoint"):
        with _judged(checkpoint, "describes a model that cannot be built"), AllocationLimit(_most_bytes(checkpoint)):
            model = catalog.rebuild(checkpoint.model.origin)
        _repeat(checkpoint.changes, model, checkpoint)
    return model


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights and freeze state into `model`, all of them or none.

    A model that lacks the checkpoint's head, input channels or adapters gets them first.

    Raises:
        CheckpointError: If the weights do not fit. The model is unchanged.
    """
    with seeded("checkpoint"):
        _repeat(missing_changes(model, checkpoint), model, checkpoint)
    with _judged(checkpoint, f"does not belong to this {type(model).__name__}"):
        for change in checkpoint.changes:
            if isinstance(change, HeadReplacement):  # which may not show in the weights, as a softmax has none
                heads.remove(model, change.removed)
        load_state(model, checkpoint.model.weights, strict=checkpoint.model.base is None)
        freezing.set_frozen(model, checkpoint.model.frozen)


def missing_changes(model: nn.Module, checkpoint: Checkpoint) -> list[ModelChange]:
    """Return the changes that `model` needs for a checkpoint's weights to fit. The model is not changed.

    Raises:
        CheckpointError: If the weights do not fit, with or without the changes.
    """
    check_initialized(model)
    misfits = _misfits(model, checkpoint)
    if not misfits:  # the number of input channels may not show in the shapes of weights
        return [change for change in checkpoint.changes if isinstance(change, InputAdaptation)]
    changes = [change for change in checkpoint.changes if not _is_custom_head(change)]
    if changes:
        trial = shared_copy(model)
        with seeded("checkpoint"):
            _repeat(changes, trial, checkpoint)
        misfits = _misfits(trial, checkpoint)
    if misfits:
        raise _misfit_error(model, checkpoint, misfits)
    return changes


def load_start(model: nn.Module, checkpoint: Checkpoint) -> list[ModelChange] | None:
    """Load a checkpoint's weights into `model` as a start for other training. The freeze state is not loaded.

    Returns:
        The changes made to the model for the weights to fit; None if its head did not fit and was left out, which a
        warning says.

    Raises:
        CheckpointError: If the weights below the head do not fit. The model is unchanged.
    """
    try:
        changes = missing_changes(model, checkpoint)
    except CheckpointError as error:
        _load_below_head(model, checkpoint, error)
        return None
    with seeded("checkpoint"):
        _repeat(changes, model, checkpoint)
    load_state(model, checkpoint.model.weights, strict=checkpoint.model.base is None)
    return changes


def _load_below_head(model: nn.Module, checkpoint: Checkpoint, error: CheckpointError) -> None:
    """Load the weights of everything but the head.

    Raises:
        CheckpointError: The given error, if there is no head or other weights do not fit either.
    """
    heads: tuple[str, ...] = ()
    with suppress(HeadError):
        heads = find_head(model)
    roots = tuple(f"{head}." for head in {*heads, *(checkpoint.heads or ())})
    below = {name: value for name, value in checkpoint.model.weights.items() if not name.startswith(roots)}
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(roots)}
    if not roots or not below or {n: _shape(v) for n, v in own.items()} != {n: _shape(v) for n, v in below.items()}:
        raise error
    load_state(model, below, strict=False)
    log.warning(
        "weights: the head of %s does not fit this %s, which keeps its own %s; the other %d weights are loaded.",
        checkpoint.path,
        type(model).__name__,
        " and ".join(heads),
        len(below),
    )


def starting_weights(path: Path, model: nn.Module) -> Mapping[str, Tensor]:
    """Read the weights of a checkpoint for a phase to start from.

    Raises:
        CheckpointError: If the file is damaged or its weights do not fit the model.
    """
    checkpoint = schema.read(path)
    misfits = _misfits(model, checkpoint)
    if misfits:
        raise _misfit_error(model, checkpoint, misfits)
    return checkpoint.model.weights


def _repeat(changes: Sequence[ModelChange], model: nn.Module, checkpoint: Checkpoint) -> None:
    """Make recorded changes to `model`.

    Raises:
        CheckpointError: If a head is a custom module, or a change cannot be made to the model.
    """
    most = _most_bytes(checkpoint)
    with _judged(checkpoint, f"does not belong to this {type(model).__name__}"):
        layers = sum(len(getattr(change, "names", ())) for change in changes)
        slow = sum(not isinstance(change, HeadReplacement) for change in changes)
        if layers > _MOST_LAYERS or slow > _MOST_SLOW:
            raise ValueError(f"it repeats {len(changes)} changes of {layers} layers, {slow} of adapters and channels")
        limit = AllocationLimit(most)
        for change in changes:
            with AllocationLimit(2 * most) if isinstance(change, InputAdaptation) else limit:
                _repeat_one(change, model, checkpoint)


def _repeat_one(change: ModelChange, model: nn.Module, checkpoint: Checkpoint) -> None:
    if isinstance(change, InputAdaptation):
        input_channels.adapt_input(model, change.in_channels)
    elif isinstance(change, LoraAdapters):
        adapters.add_lora(model, change.layers, change.lora_rank)
    elif change.head == CUSTOM_HEAD:
        raise CheckpointError(
            f"The head in {checkpoint.path} is a custom module, which cannot be built from its name. Build the "
            f"model, replace its head in the same way, and pass it as model=."
        )
    else:
        head = layer_specs.build(change.head) if isinstance(change.head, Mapping) else change.head
        heads.replace_head(model, whole_number("n", change.n), change.names, head, verify=False, repeats=True)


def _most_bytes(checkpoint: Checkpoint) -> int:
    """Return the memory that the model of a checkpoint may ask for."""
    weights = (value for value in checkpoint.model.weights.values() if isinstance(value, Tensor))
    return _SPARE_BYTES + _TIMES * sum(weight.nbytes for weight in weights)


@contextmanager
def _judged(checkpoint: Checkpoint, verdict: str) -> Iterator[None]:
    """Convert any error to a CheckpointError, as what a checkpoint asks for may fail in any way."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        why = str(error) if isinstance(error, FineTuneError) else reason(error)
        raise CheckpointError(
            f"{checkpoint.path} {verdict}: {why.rstrip('.')}. Build the model as it was when the checkpoint was saved."
        ) from error


def _is_custom_head(change: ModelChange) -> bool:
    return isinstance(change, HeadReplacement) and change.head == CUSTOM_HEAD


def _misfits(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Return the names of weights that are missing on either side or differ in shape or, in a PEFT base, in value."""
    own, weights, base = model.state_dict(), checkpoint.model.weights, checkpoint.model.base
    wrong = sorted(
        list(weights.keys() - own.keys())
        + [name for name in own.keys() & weights.keys() if _shape(own[name]) != _shape(weights[name])]
    )
    rest = {name: own[name] for name in own.keys() - weights.keys()}
    if not rest or (base is not None and base_digest(rest) == base):
        return wrong
    return wrong + [f"{name} of the base, according to its digest" if base else name for name in sorted(rest)]


def _shape(value: Any) -> Any:
    """Return the shape and the kind of number of a tensor; None for another value, as a module's extra state."""
    return (value.shape, value.is_floating_point(), value.is_complex()) if isinstance(value, Tensor) else None


def _misfit_error(model: nn.Module, checkpoint: Checkpoint, misfits: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path} does not belong to this {type(model).__name__}: {len(misfits)} of its weights do not "
        f"match, the first {misfits[0][:200]}. Build the model as it was when the checkpoint was saved."
    )
