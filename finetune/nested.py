"""Tensors in any nesting of tuples, lists, mappings and dataclasses: mapped, moved, counted."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from finetune.errors import DataError


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Return `batch` with every tensor in it on `device`; what is no tensor stays as it is.

    Looks into lists, tuples and named tuples, dicts and other mappings (a `BatchEncoding`), and
    dataclasses; an object with a `to` method of its own is asked. From pinned memory to CUDA the copy
    runs beside the host.
    """
    device = torch.device(device)
    # To the host a non-blocking copy could be read before it has arrived.
    beside = device.type == "cuda"
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=beside), batch, device)


def pinned(batch: Any) -> Any:
    """Return `batch` with its host tensors in page-locked memory, from which CUDA copies by itself."""
    return map_tensors(lambda t: t.pin_memory() if t.device.type == "cpu" else t, batch, None)


def map_tensors(change: Callable[[Tensor], Tensor], batch: Any, device: torch.device | None) -> Any:
    """Rebuild `batch` with `change` applied to its tensors; `device` for objects that move themselves."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return _map_mapping(change, batch, device)
    if callable(getattr(batch, "to", None)):  # a PackedSequence, a graph; also named tuples that know better
        return batch if device is None else batch.to(device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(change, value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map_tensors(change, value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch) if field.init]
        return dataclasses.replace(batch, **{name: map_tensors(change, getattr(batch, name), device) for name in names})
    return batch


def _map_mapping(
    change: Callable[[Tensor], Tensor], batch: Mapping[Any, Any], device: torch.device | None
) -> Mapping[Any, Any]:
    moved = {key: map_tensors(change, value, device) for key, value in batch.items()}
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return moved
    result = copy.copy(batch)  # keeps the type, and what the object carries beside its items
    for key, value in moved.items():
        result[key] = value
    return result


def num_samples_of(batch: Any) -> int:
    """Return the leading dimension of the first tensor in `batch` that has one.

    Raises:
        DataError: there is none, so the batch's size can't be told.
    """
    for tensor in tensors_of(batch):
        if tensor.dim() > 0:
            return len(tensor)
    raise DataError(
        f"A batch of type {type(batch).__name__} holds no tensor with a leading dimension, so its size is "
        "not known. Expected a tensor, or a tuple, list or dict of tensors [N, ...]."
    )


def tensors_of(nested: Any) -> list[Tensor]:
    """Return the tensors in `nested`, in order."""
    if isinstance(nested, Tensor):
        return [nested]
    if isinstance(nested, Mapping):
        parts: Iterable[Any] = nested.values()
    elif isinstance(nested, (list, tuple)):
        parts = nested
    elif dataclasses.is_dataclass(nested) and not isinstance(nested, type):
        parts = (getattr(nested, field.name) for field in dataclasses.fields(nested))
    else:
        parts = ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def same_values(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have the same shape and values, where NaN is the same as NaN."""
    if one.shape != other.shape:
        return False
    return one.equal(other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
