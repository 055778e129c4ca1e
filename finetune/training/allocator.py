"""Freed memory stays with the process while it trains on the CPU.

glibc gives large blocks back to the system as soon as they are freed, and the system clears each page that it hands
out again. A step frees and takes hundreds of megabytes of activations: for a ResNet-18 at 160 pixels the clearing took
6 to 10 % of the processor's time. Other C libraries are left as they are, and CUDA has an allocator of torch's own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# mallopt's parameters, and what they are by default (man 3 mallopt).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_TRIM_BY_DEFAULT, _MMAP_BY_DEFAULT = 128 * 1024, 65536


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep freed memory for the next step within the block; what is free at its end goes back to the system.

    Whoever set the allocator by the environment keeps those settings.
    """
    set_by_user = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" and not set_by_user else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never give back the end of the heap
    libc.mallopt(_MMAP_MAX, 0)  # nor take blocks beside it, which always go back
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, _TRIM_BY_DEFAULT)
        libc.mallopt(_MMAP_MAX, _MMAP_BY_DEFAULT)
        libc.malloc_trim(0)
