"""The lock on the random generators: in order, reentrant, lent, and free in a new process."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from finetune.data.randomness import preserved_between_draws, reseed, seeded
from finetune.threads.locks import GENERATORS, FairLock


def test_a_waiting_thread_comes_next() -> None:
    lock, seen = FairLock(), []

    def take() -> None:
        with lock.held():
            seen.append("other")

    with ThreadPoolExecutor(1) as pool:
        with lock.held():
            pool.submit(take)
            while not lock._next.locked():
                time.sleep(0.001)
        for _ in range(3):
            with lock.held(), lock.held():
                seen.append("first")
    assert seen == ["other", "first", "first", "first"]


def test_what_is_lent_comes_back_unchanged() -> None:
    with seeded(1):
        expected = torch.rand(2), random.random()
    with seeded(1):
        with ThreadPoolExecutor(1) as pool, GENERATORS.lent():
            assert not GENERATORS.is_mine
            pool.submit(reseed, 2).result()
        assert GENERATORS.is_mine
        assert torch.equal(torch.rand(2), expected[0])
        assert random.random() == expected[1]


def test_the_last_thread_to_leave_restores_the_states_of_before_the_first() -> None:
    at_start, inside, leave = torch.get_rng_state(), threading.Event(), threading.Event()

    def other() -> None:
        with preserved_between_draws():
            inside.set()
            leave.wait(10)

    with ThreadPoolExecutor(1) as pool:
        with preserved_between_draws():
            torch.rand(1)
            with preserved_between_draws():
                torch.rand(1)
                before = torch.get_rng_state()
            assert not torch.equal(torch.get_rng_state(), before), "one within another restores its own"
            torch.rand(1)
            done = pool.submit(other)
            inside.wait(10)
        assert not torch.equal(torch.get_rng_state(), at_start), "the other thread still draws"
        leave.set()
        done.result()
    assert torch.equal(torch.get_rng_state(), at_start)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_new_process_does_not_wait_for_threads_that_it_does_not_have() -> None:
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with GENERATORS.held():
            held.set()
            leave.wait(10)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        held.wait(10)
        child = os.fork()
        if child == 0:
            threading.Timer(5, os._exit, [1]).start()  # still waiting
            with seeded(1), seeded(2):
                os._exit(0)
        leave.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
