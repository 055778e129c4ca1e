"""Weights files from other tools: read them without running code, and load them without silent losses."""

from __future__ import annotations

import logging
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from finetune.errors import CheckpointError, HeadError, reason, some_of
from finetune.files.regular import check_regular
from finetune.model.families import family_of
from finetune.model.surgery.changes import HeadReplacement, ModelChange
from finetune.model.surgery.heads import num_outputs, replace_head

log = logging.getLogger("finetune")

# Keys that training scripts put around a state dict, and prefixes that wrappers put before its names.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema")
_PREFIXES = ("module.", "model.", "_orig_mod.")
_SMALL = 1 << 28  # bytes that a tensor may take although its file is smaller, because its values repeat


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or a `torch.save` file, without running any code in it.

    Raises:
        CheckpointError: If the file is damaged, is not a state dict, or holds anything but tensors.
    """
    try:
        check_regular(path)
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _check_archive(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another format can make the reader fail in any way
        raise CheckpointError(
            f"{path} cannot be read as a weights file: {reason(error)}. Expected a safetensors file, or a state dict "
            f"as written by torch.save(model.state_dict(), path)."
        ) from error
    state = _unwrapped(loaded, path)
    dense = [(name, tensor) for name, tensor in state.items() if tensor.layout is torch.strided]
    most = max(path.stat().st_size, _SMALL)
    larger = [f"{name} {list(tensor.shape)}" for name, tensor in dense if tensor.numel() * tensor.element_size() > most]
    if larger:  # its values are repeated, or there are none
        raise CheckpointError(f"{path} is damaged: {some_of(sorted(larger))} would be larger than the file.")
    return state


def _check_archive(path: Path) -> None:
    """Check, before anything is unpacked, that an archive is not compressed. torch.save compresses nothing.

    Raises:
        ValueError: If its content is larger than the file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > path.stat().st_size:
            raise ValueError(f"it is compressed, and would take {total:,} bytes")


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: Path | None = None) -> list[ModelChange]:
    """Load `state` into `model`, after resizing the head to match, and return the changes made to the model.

    Missing head weights, which stay random, and unexpected weights are counted in a warning.

    Args:
        model: Model to load them into.
        state: The weights by name.
        path: File that they were read from, for messages.

    Raises:
        CheckpointError: If nothing matches, a shape differs, or a weight of the backbone is missing.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> load_weights(model, {"module.weight": torch.ones(2, 2), "module.bias": torch.zeros(2)})
        []
        >>> model.weight.sum().item()
        4.0
    """
    head = family_of(model).heads(model)
    state = _without_prefixes(state, model.state_dict())
    changes = _fit_head(model, head, state)
    own = model.state_dict()
    matched = own.keys() & state.keys()
    wrong = [name for name in matched if own[name].shape != state[name].shape]
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    lost = [name for name in missing if not any(name.startswith(f"{part}.") for part in head)]
    unexpected = [name for name in state if name not in own]
    counts = f"{len(matched)} of {len(own)} matched, {len(missing)} missing, {len(unexpected)} unexpected"
    if not matched or wrong or lost:
        weights = "These weights" if path is None else f"The weights in {path}"
        raise CheckpointError(
            f"{weights} do not fit {type(model).__name__}: {counts}, {len(wrong)} of another shape. "
            f"The first are: {some_of(sorted(wrong or lost or unexpected))}."
        )
    if missing or unexpected:
        log.warning("weights: %s. The first are: %s.", counts, some_of(sorted(missing + unexpected)))
    load_state(model, state, strict=False)
    return changes


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load a state dict written by the same version of the model's layers.

    A file of plain tensors does not record layer versions, and some models, such as MNASNet, do not load without them.
    """
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=strict)


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}. Expected a state dict of tensors.")
    strange = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{path} is not a state dict: {some_of(sorted(strange))} are not tensors.")
    return dict(loaded)


def _without_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Strip the prefixes that wrappers put before every name, until some name is the model's own."""
    while own.keys().isdisjoint(state):
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None)
        if prefix is None or not state:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _fit_head(model: nn.Module, head: tuple[str, ...], state: Mapping[str, Tensor]) -> list[ModelChange]:
    """Give the head the number of outputs that it has in `state`, and return this change if it is one."""
    weight = state.get(f"{head[0]}.weight") if head else None
    if weight is None:
        return []
    own = model.get_submodule(head[0]).state_dict().get("weight")
    if own is None or weight.shape[1:] != own.shape[1:]:
        return []  # the comparison of names and shapes reports it
    with suppress(HeadError):
        if weight.shape[0] != num_outputs(model.get_submodule(head[0])):
            return [HeadReplacement(weight.shape[0], replace_head(model, weight.shape[0], head, verify=False), None)]
    return []
