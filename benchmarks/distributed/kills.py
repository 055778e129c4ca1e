"""A process of two is killed at a random moment. The other ends, and the run goes on in another number of processes.

Every second run has `distributed="fsdp"`. The result has to be that of the run that nobody kills.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from benchmarks.distributed.equality import ROUNDING
from benchmarks.distributed.training import SETUPS, End, difference, train
from benchmarks.rows import Row
from tests.helpers.worlds import in_processes

TITLE = "Killed processes"

_SAMPLES = 50
_EPOCHS = 12
_WORLDS = (1, 2, 3)
_SETUPS = ("all layers", "accumulation, clipping", "EMA, L2SP", "gradual_unfreezing", "frozen, activations in memory")


def trials(*, sample: bool) -> Iterator[tuple[str, ...]]:
    """Yield kind, set-up, number of processes that resume, and the number of the trial."""
    for number in range(2 if sample else 30):
        name = _SETUPS[number % len(_SETUPS)]
        kind = "fsdp" if number % 2 and "activations" not in name else "auto"
        yield kind, name, str(_WORLDS[number % len(_WORLDS)]), str(number)


def run(kind: str, name: str, world: str, number: str) -> Row:
    """Kill a process, and resume."""
    draw, size = random.Random(f"{kind} {name} {number}"), int(world)
    end, seconds = _unbroken(name, kind)
    moment, victim = draw.uniform(0.1, 0.9) * seconds, draw.randrange(2)
    with tempfile.TemporaryDirectory() as scratch:

        def work(size: int) -> tuple[list[float], ...]:
            return tuple(train(SETUPS[name], _SAMPLES, size, kind, folder=Path(scratch), epochs=_EPOCHS))

        def die(rank: int) -> tuple[list[float], ...]:
            if rank == victim:
                threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return work(2)

        begun = time.monotonic()
        left = in_processes(2, die)
        ended = time.monotonic() - begun - moment
        saved = any(Path(scratch).glob("*.safetensors"))
        resumed = in_processes(size, lambda rank: work(size))
    errors = [own for own in resumed if isinstance(own, str)]
    differences = [difference(End(*own), end) for own in resumed if not isinstance(own, str)]
    killed = left[victim] == f"ended with {-signal.SIGKILL}"
    alone = left[1 - victim] if killed and isinstance(left[1 - victim], str) else ""
    return {
        "killed": killed, "saved": saved, "said": alone, "seconds": ended, "errors": errors,
        "difference": max(differences, default=0.0),
    }  # fmt: skip


def wrong(row: Row) -> bool:
    """Return whether a trial shows a fault."""
    silent = row["killed"] and "DistributedError" not in row["said"] and row["said"]
    return bool(row["errors"] or silent) or row["difference"] > ROUNDING


def table(rows: Sequence[Row]) -> str:
    """Return counts by the number of processes that resumed."""
    lines = ["| resumed in | runs | killed in time | with a checkpoint | equal | slowest end of the other, s |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for world in _WORLDS:
        own = [row for row in rows if row["key"][3] == str(world)]
        killed = [row for row in own if row["killed"]]
        equal = sum(not wrong(row) for row in own)
        slowest = max((row["seconds"] for row in killed), default=0.0)
        counts = len(own), len(killed), sum(row["saved"] for row in killed), equal
        processes = f"{world} process{'es' * (world > 1)}"
        lines.append(f"| {processes} | " + " | ".join(map(str, counts)) + f" | {slowest:.1f} |")
    return "\n".join(lines)


@cache
def _unbroken(name: str, kind: str) -> tuple[End, float]:
    """Return the end of the run in one process, and the seconds that it takes in two."""

    def timed(rank: int) -> float:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            train(SETUPS[name], _SAMPLES, 2, kind, folder=Path(scratch), epochs=_EPOCHS)
        return time.monotonic() - begun

    end = train(SETUPS[name], _SAMPLES, 1, False, epochs=_EPOCHS)  # imports what the processes need
    return end, in_processes(2, timed)[0]
