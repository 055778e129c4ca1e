"""Keep freed memory in the process while training on the CPU.

glibc returns large blocks to the system as soon as they are freed, and the system zeroes every page that it hands out
again. A training step frees and allocates hundreds of megabytes of activations: for a ResNet-18 at 160 pixels, zeroing
took 6 to 10 % of the CPU time. Other C libraries are left alone, and on CUDA torch has its own allocator.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Parameters of mallopt and their defaults (man 3 mallopt).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_TRIM_BY_DEFAULT, _MMAP_BY_DEFAULT = 128 * 1024, 65536


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep freed memory for the next step within the context, and return it to the system on exit.

    Allocator settings in the environment take precedence.
    """
    set_by_user = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" and not set_by_user else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never return the end of the heap
    libc.mallopt(_MMAP_MAX, 0)  # nor allocate blocks outside it, which always go back
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, _TRIM_BY_DEFAULT)
        libc.mallopt(_MMAP_MAX, _MMAP_BY_DEFAULT)
        libc.malloc_trim(0)
