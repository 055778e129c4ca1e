"""A file of rows of one size, through its descriptor: each call writes all that it was given, or raises OSError."""

from __future__ import annotations

import errno
import os
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 24  # bytes


def grow(file: int, start: int, size: int) -> None:
    """Have zero bytes from `start` on, with all their blocks, so that a full disk shows here."""
    os.ftruncate(file, start)  # of what was there nothing is to be taken for whole
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, start, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    zeros = bytes(min(size, _CHUNK))
    for done in range(0, size, _CHUNK):
        write_at(file, start + done, zeros[: size - done])


def write_at(file: int, start: int, data: Any) -> None:
    """Write all of some bytes from `start` on."""
    os.lseek(file, start, os.SEEK_SET)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def write_rows(file: int, places: Tensor, rows: Tensor) -> None:
    """Write rows [N, ...] of one size, row i as number `places[i]` of the file."""
    if not rows.numel():
        return
    data = rows.cpu().reshape(len(rows), -1).view(torch.uint8).numpy()
    for place, row in zip(places.tolist(), data, strict=True):
        write_at(file, place * len(row), row)
