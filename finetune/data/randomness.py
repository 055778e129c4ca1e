"""Random numbers without a state to carry: every draw is a function of a key.

A run that seeds sample `i` of epoch `e` from `(seed, e, i)` gives the same numbers for any number of
workers, in any order, and when it resumes in the middle. `seeded` makes a block of code such a
function, whichever of the three global generators the code happens to draw from, and leaves those
generators as it found them.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

# numpy's `get_state` and `set_state` copy 624 words one by one and take 150 us together, as long as
# a whole step over cached features. A Mersenne twister is these bytes: uint32 key[624]; int pos.
_TWISTER_BYTES = 624 * 4 + 4


def seed_of(*key: int | str) -> int:
    """Return a well-mixed 64-bit seed for `key`, the same on every machine and in every process."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Run a block with torch, `random` and numpy seeded from `key`; restore all three afterwards.

    CUDA generators take part once CUDA is in use, and CUDA is never initialised here. Costs some 40
    microseconds, most of them for `random`. The generators are the process's own, so it is not for two
    threads at once.

    Args:
        key: what the block's random numbers are a function of, as `(seed, epoch, index)`.
    """
    seed = seed_of(*key)
    generators = [torch.default_generator, *_cuda_generators()]
    torch_states = [generator.get_state() for generator in generators]
    python_state = random.getstate()
    restore_numpy = _numpy_snapshot()
    try:
        for generator in generators:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        yield
    finally:
        for generator, state in zip(generators, torch_states, strict=True):
            generator.set_state(state)
        random.setstate(python_state)
        restore_numpy()


def _cuda_generators() -> tuple[torch.Generator, ...]:
    return torch.cuda.default_generators if torch.cuda.is_initialized() else ()


def _numpy_snapshot() -> Callable[[], None]:
    """Return a function that puts numpy's global generator back to where it is now."""
    twister = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if not isinstance(twister, np.random.MT19937):  # of the user's choice, and of a kind without `seed`
        np.random.set_bit_generator(np.random.MT19937(0))  # type: ignore[attr-defined]
        return lambda: np.random.set_bit_generator(twister)  # type: ignore[attr-defined]
    if not _twister_is_plain_memory():
        state = np.random.get_state(legacy=False)
        return lambda: np.random.set_state(state)
    address = twister.ctypes.state_address
    saved = ctypes.string_at(address, _TWISTER_BYTES)
    # Normals come in pairs and numpy keeps the second. It shows only in a draw that moves nothing.
    spare = np.random.standard_normal()
    if ctypes.string_at(address, _TWISTER_BYTES) == saved:
        words = np.frombuffer(saved, np.uint32)
        return lambda: np.random.set_state(("MT19937", words[:624], int(words[624]), 1, spare))

    def restore() -> None:
        np.random.seed(0)  # forgets a spare normal
        ctypes.memmove(address, saved, _TWISTER_BYTES)

    return restore


@lru_cache(maxsize=1)
def _twister_is_plain_memory() -> bool:
    """Whether this numpy lays a Mersenne twister out as `_TWISTER_BYTES` says."""
    twister = np.random.MT19937(0)
    words = np.frombuffer(ctypes.string_at(twister.ctypes.state_address, _TWISTER_BYTES), np.uint32)
    state = twister.state["state"]
    return bool((words[:624] == state["key"]).all()) and int(words[624]) == state["pos"]
