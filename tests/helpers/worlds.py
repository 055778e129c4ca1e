"""Several processes on this machine that train together, as torchrun starts them, but forked from the test."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from coverage import Coverage
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from finetune.distributed.world import leave

_SECONDS = 120


def in_processes(size: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what a function of the rank returns in each of several processes, by rank.

    An exception is returned, too, as its last line of text. Processes that do not end fail the test.
    """
    context = multiprocessing.get_context("fork")
    started = []
    for rank in range(size):
        here, there = context.Pipe()
        variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        process = context.Process(target=_run, args=(rank, variables, work, there))
        process.start()
        there.close()
        started.append((process, here))
    # The store outlives the processes, as torchrun's does, and starts after them: a fork keeps locks of its thread.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    try:
        for _, connection in started:
            connection.send(store.port)
        results = [_result(connection) for _, connection in started]
        for process, _ in started:
            process.join(_SECONDS)
            assert process.exitcode is not None, "a process does not end"
    finally:
        for process, _ in started:
            process.kill()
    return [
        f"ended with {process.exitcode}" if result is EOFError else result
        for result, (process, _) in zip(results, started, strict=True)
    ]


def _result(connection: Connection) -> Any:
    assert connection.poll(_SECONDS), "a process returns nothing"
    try:
        return connection.recv()
    except EOFError:
        return EOFError


def _run(rank: int, variables: dict[str, int], work: Callable[[int], Any], connection: Connection) -> None:
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(connection.recv())}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    torch.set_num_threads(1)  # a fork lacks the threads that its parent has started
    try:
        value = work(rank)
    except BaseException as error:
        value = "".join(traceback.format_exception_only(error)).strip()
    connection.send(value)
    if (measured := Coverage.current()) is not None:
        measured.save()  # multiprocessing ends a fork without it
    leave()
