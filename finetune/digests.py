"""A number that changes when any value of a tensor or an array does, or moves to another place."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BYTES_AT_ONCE = 1 << 24


def checksum(values: Tensor | np.ndarray | None) -> int | None:
    """Return a number of all the bits: at 1 GB/s on the host, in one pass on a device.

    None where they cannot be had: of sparse tensors and those without memory, as in a transform of `torch.func`, and of
    a file that is mapped into memory, which would be read whole.
    """
    try:
        return _checksum(values)
    except RuntimeError:
        return None


def _checksum(values: Tensor | np.ndarray | None) -> int | None:
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_meta:
            return None
        plain = values.detach().resolve_conj().resolve_neg()
        if plain.device.type != "cpu":
            return _on_device(plain)
        parts = (part.contiguous().reshape(-1).view(torch.uint8).numpy() for part in _parts(plain, plain.nbytes))
    elif values is None or _is_mapped(values):
        return None
    else:
        parts = (np.ascontiguousarray(part) for part in _parts(values, values.nbytes))
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return found


def _on_device(values: Tensor) -> int | None:
    kind = _INTEGERS.get(values.dtype.itemsize)
    if kind is None:
        return None
    bits = values.contiguous().reshape(-1).view(kind).to(torch.int64)
    weights = torch.arange(1, 2 * len(bits), 2, device=values.device)  # odd, so that no bit is lost
    return int((bits * weights).sum())


def _parts(values: Any, size: int) -> Iterator[Any]:
    """Divide along the first dimension, so that what is not contiguous is copied a part at a time."""
    if not values.ndim:
        yield values
        return
    step = max(1, len(values) * _BYTES_AT_ONCE // max(1, size))
    for start in range(0, len(values), step):
        yield values[start : start + step]


def _is_mapped(array: Any) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None
