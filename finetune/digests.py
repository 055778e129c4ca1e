"""Hashes of tensors, arrays and files.

`checksum` is fast and notices changes within a process. `sha256` and the 128-bit keys are the same in every process
and end up on disk: they identify checkpoints, finished runs and cached samples, so their values must never change.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.files.regular import opened

KEY_BYTES = 16

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK_BYTES = 1 << 24
_CLOCK_GRAIN = 2.0  # seconds: the resolution of FAT, the coarsest file system in use


def checksum(values: Tensor | np.ndarray | None) -> int | None:
    """Return a checksum of a tensor's or an array's values, at about 1 GB/s on the host or in one pass on a device.

    Returns:
        None if the values cannot be read, as in sparse tensors, tensors without storage (`meta`, `torch.func`
        transforms) and memory-mapped arrays, which would be read from disk in full.
    """
    if values is None or (isinstance(values, np.ndarray) and _is_memory_mapped(values)):
        return None
    try:
        if isinstance(values, Tensor):
            if values.layout != torch.strided or values.is_meta:
                return None
            values = values.detach()
            if values.device.type != "cpu":
                return _checksum_on_device(values.resolve_conj().resolve_neg())
        found = 0
        for part in byte_chunks(values):
            found = zlib.crc32(part, found)
        return found
    except RuntimeError:
        return None


def sha256(*parts: str | bytes | Tensor | np.ndarray) -> str:
    """Return the SHA-256 of the concatenated parts in hexadecimal.

    Tensors and arrays count with their values in row-major order, whatever their strides and device. Their dtype and
    shape do not count; pass these as text where they matter.

    Raises:
        RuntimeError: If a tensor's values cannot be read (sparse, `meta`).
        TypeError: If an array holds Python objects.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        elif isinstance(part, bytes):
            digest.update(part)
        else:
            for chunk in byte_chunks(part):
                digest.update(chunk)
    return digest.hexdigest()


def key_of(kind: str, content: bytes | memoryview) -> bytes:
    """Return the 128-bit key of some bytes; equal bytes of different kinds have different keys."""
    digest = hashlib.blake2b(kind.encode() + b"\n", digest_size=KEY_BYTES)
    digest.update(content)
    return digest.digest()


def keys_of_rows(
    values: Tensor | np.ndarray, indices: Tensor, *, chunk_bytes: int = 4 * _CHUNK_BYTES
) -> Iterator[bytes]:
    """Yield the key of each row of `values` at `indices`, int64 [N], by its dtype, shape and values.

    Args:
        values: Tensor or array [M, ...], possibly memory-mapped.
        indices: Rows to hash.
        chunk_bytes: Bytes to gather at a time.

    Raises:
        RuntimeError: If a tensor's values cannot be read (sparse, `meta`).
        TypeError: If an array holds Python objects.
    """
    kind = f"array {values.dtype} {tuple(values.shape[1:])} {isinstance(values, Tensor)}"
    rows_at_once = max(1, len(values) * chunk_bytes // max(1, values.nbytes))
    for chosen in indices.split(rows_at_once):
        rows = values[chosen.to(values.device)] if isinstance(values, Tensor) else np.asarray(values[chosen.numpy()])
        for row in _as_bytes(rows).reshape(len(chosen), -1):
            yield key_of(kind, row.data)


def key_of_file(path: str | Path, *, clock_grain: float = _CLOCK_GRAIN) -> bytes:
    """Return the key of a file, by its path, size, modification times and inode.

    Args:
        path: File to identify.
        clock_grain: Resolution of the file system's clock in seconds. A file changed less than this ago counts with its
            content too, because another change could leave its times the same.

    Raises:
        OSError: If the file cannot be read.
    """
    state = os.stat(path)
    known = (os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    content = json.dumps(known).encode()
    if time.time() - max(state.st_mtime, state.st_ctime) < clock_grain:
        with opened(Path(path)) as file:
            content += file.read()
    return key_of("file", content)


def _checksum_on_device(values: Tensor) -> int | None:
    kind = _INTEGERS.get(values.dtype.itemsize)
    if kind is None:
        return None
    bits = values.contiguous().reshape(-1).view(kind).to(torch.int64)
    weights = torch.arange(1, 2 * len(bits), 2, device=values.device)  # odd, so that no bit is lost
    return int((bits * weights).sum())


def byte_chunks(values: Tensor | np.ndarray) -> Iterator[memoryview]:
    """Yield the bytes of all values in row-major order.

    They come in chunks, so that strided or device memory is never copied whole.

    Raises:
        RuntimeError: If a tensor's values cannot be read (sparse, `meta`).

    Example:
        >>> [bytes(chunk) for chunk in byte_chunks(torch.tensor([1, 2], dtype=torch.uint8))]
        [b'\\x01\\x02']
    """
    if not values.ndim:
        yield _as_bytes(values).data
        return
    step = max(1, len(values) * _CHUNK_BYTES // max(1, values.nbytes))
    for start in range(0, len(values), step):
        yield _as_bytes(values[start : start + step]).data


def _as_bytes(values: Tensor | np.ndarray) -> np.ndarray:
    """Return the values as a flat uint8 array, without a copy if their memory allows it."""
    if isinstance(values, Tensor):
        plain = values.detach().resolve_conj().resolve_neg().cpu().contiguous()
        flat = plain.as_strided((plain.numel(),), (1,))  # a single value may have any stride
        return flat.view(torch.uint8).numpy()
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _is_memory_mapped(array: Any) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None
