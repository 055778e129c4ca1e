from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.randomness import seed_of, seeded
from finetune.devices.generators import torch_generators


def draws() -> tuple[float, ...]:
    return (
        torch.rand(()).item(),
        torch.randn(()).item(),
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
    )


def states() -> tuple[object, ...]:
    numpy_state = np.random.get_state()
    return (
        torch.random.get_rng_state().tolist(),
        random.getstate(),
        numpy_state[1].tolist(),
        *numpy_state[2:],
    )


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4), st.integers(0, 700))
def test_draws_depend_on_the_key_alone_and_leave_the_global_state(key: list[int], before: int) -> None:
    np.random.rand(before)  # to any position in NumPy's block of 624 words
    at_start = states()
    with seeded(*key):
        first = draws()
    assert states() == at_start
    draws()
    with seeded(*key):
        assert draws() == first


@pytest.mark.parametrize("normals", [0, 1, 2, 3])
def test_a_spare_normal_of_numpy_is_kept(normals: int) -> None:
    np.random.seed(7)
    np.random.randn(normals)
    at_start = states()
    with seeded(1):
        np.random.randn(1)
    assert states() == at_start


def test_another_bit_generator_of_the_user_is_kept() -> None:
    twister = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.MT19937(3))
        expected = np.random.rand(4)
        np.random.set_bit_generator(np.random.MT19937(3))
        np.random.rand(2)
        with seeded(1):
            np.random.rand(5)
        assert np.array_equal(np.random.rand(2), expected[2:])
    finally:
        np.random.set_bit_generator(twister)


def test_a_bit_generator_of_another_kind_is_kept() -> None:
    twister = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        expected = np.random.rand(4)
        np.random.set_bit_generator(np.random.PCG64(3))
        assert np.array_equal(np.random.rand(2), expected[:2])
        with seeded(1):
            np.random.rand(5)
        assert np.array_equal(np.random.rand(2), expected[2:])
    finally:
        np.random.set_bit_generator(twister)


def test_blocks_nest() -> None:
    with seeded(1):
        draws()
        rest = draws()
    with seeded(1):
        draws()
        with seeded(2):
            draws()
        assert draws() == rest


def test_restores_after_an_exception() -> None:
    at_start = states()
    with pytest.raises(ZeroDivisionError), seeded(1):
        int(draws()[0]) // 0
    assert states() == at_start


@given(st.tuples(st.integers(0, 99), st.integers(0, 99)), st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_seeds_of_different_keys_differ(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert (seed_of(*a) == seed_of(*b)) == (a == b)
    assert 0 <= seed_of(*a) < 2**64


def test_seed_is_the_same_on_every_machine() -> None:
    assert seed_of(0, "order", 3) == 17364076536795784207
    assert seed_of(1, 23) != seed_of(12, 3)


def test_never_initializes_a_gpu() -> None:
    before = torch.cuda.is_initialized()
    with seeded(1):
        torch.rand(1)
    assert torch.cuda.is_initialized() == before


def test_a_gpu_is_seeded_once_in_use(accelerator: torch.device) -> None:
    torch.rand(1, device=accelerator)
    states = [generator.get_state() for generator in torch_generators()]
    with seeded(5):
        first = torch.rand(3, device=accelerator)
    assert all(map(torch.equal, states, (generator.get_state() for generator in torch_generators())))
    torch.rand(1, device=accelerator)
    with seeded(5):
        assert torch.equal(torch.rand(3, device=accelerator), first)
