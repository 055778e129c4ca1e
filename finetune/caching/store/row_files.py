"""Rows of equal size in a file, their checksums, and space for more.

Everything is read and written by calls that can fail. A memory map would kill the process if the file is truncated, the
disk is full or a block cannot be read.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def grow(file: int, start: int, size: int, chunk_bytes: int) -> None:
    """Extend a file by `size` zero bytes from `start` on and allocate their blocks, so that a full disk fails here."""
    os.ftruncate(file, start)  # drop bytes that could be mistaken for complete rows
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, start, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    zeros = bytes(min(size, chunk_bytes))
    for done in range(0, size, chunk_bytes):
        write_at(file, start + done, zeros[: size - done])


def write_at(file: int, start: int, data: Any) -> None:
    """Write all bytes of `data` from `start` on."""
    os.lseek(file, start, os.SEEK_SET)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def write_rows(file: int, places: Tensor, rows: Tensor) -> None:
    """Write `rows` [N, ...] to the file, row i at place `places[i]`."""
    if not rows.numel():
        return
    for place, row in zip(places.tolist(), _as_bytes(rows), strict=True):
        write_at(file, place * len(row), row)


def read_rows(file: int, places: Tensor, rows: Tensor) -> Tensor:
    """Read into `rows` [N, ...], row i from place `places[i]`. Neighbors are read at once.

    Returns:
        Whether each row could be read, bool [N].
    """
    readable = torch.ones(len(rows), dtype=torch.bool)
    if not rows.numel():
        return readable
    size, at = rows[0].nbytes, places.numpy()
    data = _as_bytes(rows).data.cast("B")
    starts = [0, *(np.flatnonzero(np.diff(at) != 1) + 1).tolist()]
    for start, end, place in zip(starts, [*starts[1:], len(at)], at[starts].tolist(), strict=True):
        wanted = (end - start) * size
        count = _read_at(file, place * size, data[start * size : end * size])
        if count < wanted:
            readable[start + count // size : end] = False
    return readable


def checksums(keys: Sequence[bytes], rows: Sequence[Tensor]) -> np.ndarray:
    """Return the CRC-32 of each key and its row in each of `rows`, uint32 [N]."""
    sums = [zlib.crc32(key) for key in keys]
    for column in rows:
        if column.numel():
            sums = [zlib.crc32(row, before) for row, before in zip(_as_bytes(column), sums, strict=True)]
    return np.array(sums, np.uint32)


def _read_at(file: int, start: int, data: memoryview) -> int:
    """Fill `data` with the bytes from `start` on. Return how many could be read."""
    done = 0
    try:
        while done < len(data):
            count = _read_some(file, start + done, data[done:] if done else data)
            if not count:
                break
            done += count
    except OSError:  # a block that cannot be read
        pass
    return done


if hasattr(os, "preadv"):

    def _read_some(file: int, start: int, data: memoryview) -> int:
        return os.preadv(file, [data], start)

else:

    def _read_some(file: int, start: int, data: memoryview) -> int:
        os.lseek(file, start, os.SEEK_SET)
        found = os.read(file, len(data))
        data[: len(found)] = found
        return len(found)


def _as_bytes(rows: Tensor) -> np.ndarray:
    """Return the memory of `rows` [N, ...] as bytes, uint8 [N, bytes]."""
    return rows.reshape(len(rows), -1).view(torch.uint8).numpy()
