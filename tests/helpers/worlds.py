"""Several processes on this machine that train together, as torchrun starts them, but forked from the test."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
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
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # outlives them, as torchrun's does
    started = []
    for rank in range(size):
        variables: dict[str, Any] = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
        variables["TORCHELASTIC_USE_AGENT_STORE"] = True
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(rank, variables, work, sender))
        process.start()
        sender.close()
        started.append((process, receiver))
    try:
        return [_result(process, receiver) for process, receiver in started]
    finally:
        for process, _ in started:
            process.kill()


def _result(process: BaseProcess, receiver: Connection) -> Any:
    assert receiver.poll(_SECONDS), "a process does not end"
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return f"ended with {process.exitcode}"


def _run(rank: int, variables: dict[str, Any], work: Callable[[int], Any], sender: Connection) -> None:
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)  # a fork lacks the threads that its parent has started
    try:
        value = work(rank)
    except BaseException as error:
        value = "".join(traceback.format_exception_only(error)).strip()
    sender.send(value)
    if (measured := Coverage.current()) is not None:
        measured.save()  # multiprocessing ends a fork without it
    leave()
