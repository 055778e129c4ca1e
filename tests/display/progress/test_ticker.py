"""The thread that draws."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar

import pytest

from finetune.display.progress.ticker import Ticker


def ticking(tick: Callable[[], object]) -> tuple[Ticker, threading.Thread]:
    ticker = Ticker(tick, 0.001)
    ticker.start()
    assert ticker._thread is not None
    return ticker, ticker._thread


def test_it_calls_until_it_is_stopped() -> None:
    calls, enough = [], threading.Event()

    def tick() -> None:
        calls.append(None)
        if len(calls) == 3:
            enough.set()

    ticker, thread = ticking(tick)
    assert enough.wait(10)
    ticker.stop()
    count = len(calls)
    thread.join(10)
    assert not thread.is_alive()
    assert len(calls) == count


def test_an_error_ends_the_calls_only() -> None:
    def tick() -> None:
        raise BrokenPipeError

    ticker, thread = ticking(tick)
    thread.join(10)
    assert not thread.is_alive()
    ticker.stop()


def test_a_call_sees_the_context_of_its_start() -> None:
    cell: ContextVar[str] = ContextVar("cell", default="none")
    seen, called = [], threading.Event()
    token = cell.set("a cell")
    ticker, _ = ticking(lambda: (seen.append(cell.get()), called.set()))
    cell.reset(token)
    assert called.wait(10)
    ticker.stop()
    assert seen[0] == "a cell"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_is_never_forked_while_a_call_runs() -> None:
    """Each fork finds the lock, which the thread holds during half of its time, free."""
    lock, begun = threading.Lock(), threading.Event()

    def tick() -> None:
        with lock:
            begun.set()
            threading.Event().wait(0.005)

    ticker, _ = ticking(tick)
    assert begun.wait(10)
    for _ in range(10):
        child = os.fork()
        if child == 0:
            os._exit(0 if lock.acquire(blocking=False) else 1)
        assert os.waitpid(child, 0)[1] == 0
    ticker.stop()
