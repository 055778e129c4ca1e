"""Find, map and move the tensors in nested tuples, lists, mappings and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from finetune.devices.device import has_own_memory


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Return `batch` with its tensors on `device`. Other values are left alone.

    Descends into lists, tuples and named tuples, dicts and other mappings (such as `BatchEncoding`), and
    dataclasses, and calls the `to` method of other objects. Copies from pinned memory to a GPU are asynchronous.
    """
    device = torch.device(device)
    non_blocking = has_own_memory(device)  # a copy to the host could be read before it is complete
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking), batch, device)


def pinned(batch: Any) -> Any:
    """Return `batch` with its host tensors in page-locked memory, from which copies to a GPU are asynchronous."""
    return map_tensors(lambda t: t.pin_memory() if t.device.type == "cpu" else t, batch, None)


def map_tensors(change: Callable[[Tensor], Tensor], batch: Any, device: torch.device | None) -> Any:
    """Return `batch` with `change` applied to its tensors. Objects with a `to` method move to `device`."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return _map_mapping(change, batch, device)
    if callable(getattr(batch, "to", None)):  # a PackedSequence, a graph, or a named tuple with its own rules
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
    result = copy.copy(batch)  # keeps the type and any attributes beside the items
    for key, value in moved.items():
        result[key] = value
    return result


def is_group(nested: Any) -> bool:
    """Return whether `nested` is a tuple or list of parts. A `PackedSequence` is a tuple, but a value of its own."""
    return isinstance(nested, (list, tuple)) and not callable(getattr(nested, "to", None))


def as_plain(nested: Any) -> Any:
    """Return `nested` with tensors of a subclass as plain tensors, unless they wrap other tensors."""
    if any(_is_dressed(tensor) for tensor in tensors_of(nested)):
        return map_tensors(lambda tensor: tensor.as_subclass(Tensor) if _is_dressed(tensor) else tensor, nested, None)
    return nested


def _is_dressed(tensor: Tensor) -> bool:
    """Return whether a tensor has the values of a plain one, with other methods or attributes."""
    return type(tensor) is not Tensor and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def described(nested: Any) -> str:
    """Return the dtypes and shapes of the tensors in `nested`, or its type if there are none.

    Example:
        >>> described([torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)])
        'float32 [2, 3], int64 [2]'
    """
    shown = [f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for tensor in tensors_of(nested)]
    return ", ".join(shown) or f"a {type(nested).__name__}"


def tensors_of(nested: Any) -> list[Tensor]:
    """Return the tensors in `nested` in order."""
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
    """Return whether two tensors have the same shape and values, counting NaN as equal to NaN."""
    if one.shape != other.shape:
        return False
    return one.equal(other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
