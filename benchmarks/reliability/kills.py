"""SIGKILL at random moments of runs, half of them while a checkpoint is written. The runs then resume, and end."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from benchmarks.reliability.children import Child, Shared, in_child
from benchmarks.reliability.safeties import everywhere, take_out
from benchmarks.reliability.setups import SETUPS, content
from benchmarks.rows import Row
from finetune import CheckpointError
from finetune.checkpoint import schema
from finetune.checkpoint.verify import verify
from finetune.files import durable

TITLE = "Killed runs"
COUNTS = {
    "kills": "kills",
    "in_save": "in a save",
    "runs": "runs",
    "equal": "equal bit for bit",
    "unreadable": "unreadable files",
    "lost": "lost progress",
    "stages": "stages left",
}
FAULTS = ("unreadable", "lost", "stages", "unequal")
CONTROLS = ("staging", "the optimizer's state", "the callbacks' state", "random numbers by sample")
KILLS = 4  # of each run

_SAVES, _INSIDE = range(2)  # numbers that the child shares: saves that have begun, and whether one is under way


class Reference(NamedTuple):
    """The run that nobody kills: digest, seconds, and number of files written."""

    digest: str
    seconds: float
    saves: int


def trials(*, sample: bool) -> Iterator[tuple[str, str, int]]:
    """Yield the safety that is taken out, the set-up and the number of each trial."""
    names = list(SETUPS)
    rounds = 1 if sample else 4
    for number in range(rounds):
        yield from (("", name, number) for name in (names[4:12:7] if sample else names))
    for safety in CONTROLS:
        chosen = ("full_finetune, batch norm, dropout",) if sample else names[2:12]
        yield from ((safety, name, 0) for name in chosen)


def run(safety: str, name: str, draw: random.Random) -> Row:
    """Kill a run several times, look at its files after each, and let it end."""
    reference = _reference(safety, name)
    found: Row = dict.fromkeys(COUNTS, 0) | {"runs": 1}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "run"
        reached: tuple[int, ...] = ()
        for i in range(KILLS):
            killed, in_save = _killed(safety, name, place, reference, draw, in_save=i % 2 == 0)
            found["kills"] += killed
            found["in_save"] += in_save
            found["unreadable"] += len(unreadable(place))
            now = progress(place)
            found["lost"] += now < reached
            reached = max(now, reached)
        ended = in_child(partial(_work, safety, name, place))
        found["equal"] += ended.value == reference.digest
        found["stages"] += len(list(place.glob(".*.part")))
    return {**found, "unequal": found["runs"] - found["equal"], "error": ended.error}


def _killed(
    safety: str, name: str, place: Path, reference: Reference, draw: random.Random, *, in_save: bool
) -> tuple[bool, bool]:
    """Start the run, kill it at a random moment, and return whether that came before its end, and within a save."""
    shared = Shared(2)
    child = Child(partial(_work, safety, name, place, shared))
    save = draw.randint(1, max(1, reference.saves // KILLS))
    end = time.monotonic() + draw.uniform(0.1, 0.6) * reference.seconds
    while child.is_running() and (shared[_SAVES] < save if in_save else time.monotonic() < end):
        time.sleep(0.0002)
    if in_save:
        time.sleep(draw.uniform(0, 0.004))
    running = child.is_running()
    if running:
        child.signal(signal.SIGKILL)
    child.wait()
    return running, running and bool(shared[_INSIDE])


@cache
def _reference(safety: str, name: str) -> Reference:
    with tempfile.TemporaryDirectory() as scratch:
        content(name, Path(scratch) / "first")  # imports what the set-up needs
        shared = Shared(2)
        ended = in_child(partial(_work, safety, name, Path(scratch) / "run", shared))
        return Reference(ended.value, ended.seconds, shared[_SAVES])


def _work(safety: str, name: str, place: Path, shared: Shared | None = None) -> str:
    take_out(safety)
    if shared is not None:
        _count_saves(shared)
    return content(name, place)


def _count_saves(shared: Shared) -> None:
    plain = durable.written

    @contextmanager
    def counted(*args: Any, **kwargs: Any) -> Iterator[BinaryIO]:
        shared[_SAVES] += 1
        shared[_INSIDE] = 1
        with plain(*args, **kwargs) as file:
            yield file
        shared[_INSIDE] = 0

    everywhere(plain, counted)


def unreadable(place: Path) -> list[Path]:
    """Return the checkpoints in a folder that are damaged."""
    damaged = []
    for path in place.glob("*.safetensors"):
        try:
            verify(path)
        except CheckpointError:
            damaged.append(path)
    return damaged


def progress(place: Path) -> tuple[int, ...]:
    """Return the progress of the furthest intact checkpoint of a run; `()` if there is none."""
    found: list[tuple[int, ...]] = [()]
    for path in place.glob("*.safetensors"):
        with suppress(CheckpointError):
            found.append(schema.read_progress(path) or ())
    return max(found)
