"""Batches of concurrent items: every item is answered once, with its own result."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from finetune.serve.batcher import Batcher, QueueFullError
from tests.helpers.processes import ROOT

FORGOTTEN = """
import os, time
from finetune.serve.batcher import Batcher

def slow(items):
    os.write(1, b"begun ")
    time.sleep(0.5)
    os.write(1, b"done ")
    return items

batcher = Batcher(slow, batch_size=1, queue=9)
batcher.submit(range(3))
while len(batcher) == 3:
    time.sleep(0.01)
"""


class Doubling:
    """A function of a batch that waits until it is let go, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.may_go = threading.Semaphore(0), threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.begun.release()
        assert self.may_go.wait(10)
        self.batches.append(items)
        if -1 in items:
            raise ValueError("an item of -1")
        return [2 * item for item in items]


def test_items_that_gather_meanwhile_are_computed_together() -> None:
    double = Doubling()
    with Batcher(double, batch_size=3, queue=10) as batcher:
        first = batcher.submit([0])
        assert double.begun.acquire(timeout=10)
        others = [batcher.submit([item])[0] for item in (1, 2, 3, 4)]
        double.may_go.set()
        assert [each.result(10) for each in first + others] == [0, 2, 4, 6, 8]
    assert double.batches == [[0], [1, 2, 3], [4]]


def test_each_of_many_threads_gets_its_own_result() -> None:
    sizes: list[int] = []
    with (
        Batcher(
            lambda items: [item * item for item in items], batch_size=8, queue=500, observe=sizes.append
        ) as batcher,
        ThreadPoolExecutor(32) as threads,
    ):
        found = list(threads.map(lambda item: batcher.submit([item])[0].result(10), range(400)))
    assert found == [item * item for item in range(400)]
    assert sum(sizes) == 400
    assert max(sizes) <= 8


def test_a_full_queue_takes_all_items_or_none() -> None:
    double = Doubling()
    with Batcher(double, batch_size=1, queue=2) as batcher:
        running = batcher.submit([0])
        assert double.begun.acquire(timeout=10)
        waiting = batcher.submit([1])
        with pytest.raises(QueueFullError):
            batcher.submit([2, 3])
        assert len(batcher) == 1
        waiting += batcher.submit([4])
        double.may_go.set()
        assert [each.result(10) for each in running + waiting] == [0, 2, 8]


def test_only_the_item_at_fault_gets_the_error() -> None:
    double = Doubling()
    with Batcher(double, batch_size=4, queue=10) as batcher:
        batcher.submit([0])
        assert double.begun.acquire(timeout=10)
        good, bad, other = batcher.submit([1, -1, 3])
        double.may_go.set()
        assert (good.result(10), other.result(10)) == (2, 6)
        with pytest.raises(ValueError, match="-1"):
            bad.result(10)


def test_closing_answers_what_waits_and_takes_nothing_more() -> None:
    double = Doubling()
    batcher = Batcher(double, batch_size=1, queue=10)
    futures = batcher.submit([1, 2, 3])
    double.may_go.set()
    batcher.close()
    assert [each.result(0) for each in futures] == [2, 4, 6]
    assert not batcher.alive
    with pytest.raises(QueueFullError):
        batcher.submit([4])


def test_a_cancelled_item_is_not_computed() -> None:
    double = Doubling()
    with Batcher(double, batch_size=1, queue=10) as batcher:
        batcher.submit([0])
        assert double.begun.acquire(timeout=10)
        cancelled, kept = batcher.submit([1, 2])
        assert cancelled.cancel()
        double.may_go.set()
        assert kept.result(10) == 4
    assert double.batches == [[0], [2]]


def test_the_batch_under_way_is_finished_at_exit_and_the_rest_dropped() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", FORGOTTEN], env=environment, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"begun done ", b"")
