"""Foreign weights files: read them without running code, load them without losing any in silence."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from finetune.errors import CheckpointError, HeadError, reason
from finetune.model.families import family_of
from finetune.model.surgery.heads import num_outputs, replace_head

log = logging.getLogger("finetune")

# What training scripts and wrappers put around a model's own names.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema")
_PREFIXES = ("module.", "model.", "_orig_mod.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or a `torch.save` file; no code in it is run.

    Raises:
        CheckpointError: the file is damaged, holds more than tensors, or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another kind can make the reader fail in any way
        raise CheckpointError(
            f"{path} cannot be read as a weights file: {reason(error)}. Expected a safetensors file or a state dict of "
            f"tensors, as torch.save(model.state_dict(), path) writes it."
        ) from error
    return _unwrapped(loaded, path)


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state` into `model`, whose head takes the size it has in there.

    Weights for the head alone may be missing (then it stays random), and there may be some that the
    model has no place for; both are counted in a warning.

    Raises:
        CheckpointError: nothing matches, a shape differs, or a weight of the backbone is missing.
    """
    head = family_of(model).heads(model)
    state = _without_prefixes(state, model.state_dict())
    _fit_head(model, head, state)
    own = model.state_dict()
    matched = own.keys() & state.keys()
    wrong = [name for name in matched if own[name].shape != state[name].shape]
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    lost = [name for name in missing if not any(name.startswith(f"{part}.") for part in head)]
    unexpected = [name for name in state if name not in own]
    counts = f"{len(matched)} of {len(own)} matched, {len(missing)} missing, {len(unexpected)} unexpected"
    if not matched or wrong or lost:
        raise CheckpointError(
            f"These weights do not belong to {type(model).__name__}: {counts}, {len(wrong)} of another shape. "
            f"First of them: {_some(wrong or lost or unexpected)}."
        )
    if missing or unexpected:
        log.warning("weights: %s. First of them: %s.", counts, _some(missing + unexpected))
    load_state(model, state, strict=False)


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load a state dict that is of the model's own version.

    A file of tensors alone does not hold the versions of the layers that wrote it, and some, as MNASNet,
    refuse to load without.
    """
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=strict)


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected a state dict of tensors.")
    strange = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{path} is no state dict: {_some(strange)} are not tensors.")
    return dict(loaded)


def _without_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Take off what wrappers put before every name, until names are those of the model."""
    while own.keys().isdisjoint(state):
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None)
        if prefix is None or not state:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _fit_head(model: nn.Module, head: tuple[str, ...], state: Mapping[str, Tensor]) -> None:
    weight = state.get(f"{head[0]}.weight") if head else None
    if weight is None:
        return
    with suppress(HeadError):  # the comparison of names and shapes will say it
        if weight.shape[0] != num_outputs(model.get_submodule(head[0])):
            replace_head(model, weight.shape[0], head, verify=False)


def _some(names: Iterable[str], count: int = 3) -> str:
    names = sorted(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
