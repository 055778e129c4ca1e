"""Random numbers without a state to carry: every draw is a function of a key.

A run that seeds sample `i` of epoch `e` from `(seed, e, i)` gives the same numbers for any number of
workers, in any order, and when it resumes in the middle. `reseed` does that for whichever of the three
global generators the code happens to draw from; `preserved` gives these back to the user as they were.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*key: int | str) -> int:
    """Return a well-mixed 64-bit seed for `key`, the same on every machine and in every process."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def reseed(*key: int | str) -> None:
    """Seed torch, `random` and numpy from `key`; use it within `preserved`.

    Costs some 15 microseconds. CUDA takes part once it is in use, and is never initialised here.
    """
    seed = seed_of(*key)
    for generator in torch_generators():
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def preserved() -> Iterator[None]:
    """Give torch's, `random`'s and numpy's global generators back as they were.

    Costs some 200 microseconds, so it belongs around a batch or a run and not around a sample. Not for
    two threads at once: the generators are the process's own.
    """
    generators = [(generator, generator.get_state()) for generator in torch_generators()]
    python_state, numpy_state = random.getstate(), np.random.get_state(legacy=False)
    try:
        yield
    finally:
        for generator, state in generators:
            generator.set_state(state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Run a block with all generators seeded from `key`, and preserved."""
    with preserved():
        reseed(*key)
        yield


@contextmanager
def generators_of_loader_preserved(data: object) -> Iterator[None]:
    """Give the generators of a user's own DataLoader back as they were; other data has none."""
    holders = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    generators = [(generator, generator.get_state()) for generator in found if isinstance(generator, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in generators:
            generator.set_state(state)


def host_state() -> tuple[object, ...]:
    """Return the states of `random` and numpy, to compare with what they are later."""
    numpy_state = np.random.get_state(legacy=False)
    return random.getstate(), str(numpy_state["state"]["key"].tolist()), numpy_state["state"]["pos"]


def torch_generators() -> tuple[torch.Generator, ...]:
    """Return torch's global generators: the CPU's, and CUDA's once it is in use."""
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return (torch.default_generator, *cuda)
