"""Stateless random numbers: every draw is a function of a key.

A run that seeds sample `i` of epoch `e` from `(seed, e, i)` draws the same numbers with any number of workers, in any
order, and after it resumes mid-epoch. `reseed` seeds the global generators of torch, `random` and NumPy; `preserved`
restores their states. The generators belong to the process, so a thread holds `GENERATORS` while it uses them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import numpy as np
import torch

from finetune.devices.generators import torch_generators
from finetune.threads.locks import GENERATORS

# Threads in `preserved_between_draws`, and the states of before the first one.
_threads: dict[int, int] = {}
_before: list[tuple[Any, ...]] = []


def seed_of(*key: int | str) -> int:
    """Return a well-mixed 64-bit seed for `key`, the same on every machine and in every process.

    Example:
        >>> seed_of(0, "split") == seed_of(0, "split") != seed_of(1, "split")
        True
    """
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def reseed(*key: int | str) -> None:
    """Seed torch, `random` and NumPy from `key`. Use it inside `preserved`, or while holding `GENERATORS`.

    Takes about 15 microseconds. A GPU is seeded once it is in use, but never initialized here.
    """
    seed = seed_of(*key)
    for generator in torch_generators():
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def preserved() -> Iterator[None]:
    """Restore the states of the global generators of torch, `random` and NumPy on exit.

    Takes about 200 microseconds, so use it around a batch or a run rather than a sample. Other threads wait meanwhile.
    """
    with GENERATORS.held(), _kept():
        yield


@contextmanager
def preserved_between_draws() -> Iterator[None]:
    """Restore the states on exit, like `preserved`, but let other threads draw meanwhile.

    Whatever draws within holds `GENERATORS` and seeds them itself. If several threads are within, the last one to leave
    restores the states of before the first one.
    """
    me = get_ident()
    with GENERATORS.held():
        states = _states()
        if not _threads:
            _before[:] = [states]
        _threads[me] = _threads.get(me, 0) + 1
    try:
        yield
    finally:
        with GENERATORS.held():
            _threads[me] -= 1
            within = _threads[me] > 0
            if not within:
                del _threads[me]
            if within or not _threads:
                _restore(states if within else _before.pop())


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Seed the global generators from `key`, and restore their states on exit.

    Example:
        >>> with seeded(0, "dropout"):
        ...     first = torch.rand(2)
        >>> with seeded(0, "dropout"):
        ...     assert torch.equal(torch.rand(2), first)
    """
    with preserved():
        reseed(*key)
        yield


@contextmanager
def generators_of_loader_preserved(data: object) -> Iterator[None]:
    """Restore the states of the generators of a DataLoader on exit. Other data has no generators."""
    holders = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    generators = [(generator, generator.get_state()) for generator in found if isinstance(generator, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in generators:
            generator.set_state(state)


@contextmanager
def _kept() -> Iterator[None]:
    states = _states()
    try:
        yield
    finally:
        _restore(states)


def _states() -> tuple[Any, ...]:
    generators = [(generator, generator.get_state()) for generator in torch_generators()]
    return generators, random.getstate(), np.random.get_state(legacy=False)


def _restore(states: tuple[Any, ...]) -> None:
    generators, python_state, numpy_state = states
    for generator, state in generators:
        generator.set_state(state)
    random.setstate(python_state)
    np.random.set_state(numpy_state)


def host_state() -> tuple[object, ...]:
    """Return the states of `random` and NumPy, for comparison with a later call."""
    numpy_state = np.random.get_state(legacy=False)
    return random.getstate(), str(numpy_state["state"]["key"].tolist()), numpy_state["state"]["pos"]


GENERATORS.kept = _kept
