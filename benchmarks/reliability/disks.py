"""A small disk that is full within a random save. The run resumes when there is space again."""

from __future__ import annotations

import errno
import itertools
import random
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.digests import convolutions, digest, images
from benchmarks.reliability.children import in_child
from benchmarks.reliability.kills import progress, unreadable
from benchmarks.reliability.safeties import take_out
from benchmarks.rows import Row
from finetune import FineTuner, digests
from finetune.callbacks import Callback, CSVLogger, ModelCheckpoint
from finetune.checkpoint import tensor_file

TITLE = "Full disks"
COUNTS = {
    "full": "full disks",
    "named": "clear errors",
    "unreadable": "unreadable files",
    "lost": "nothing left",
    "equal": "equal bit for bit after it",
}
FAULTS = ("unnamed", "unreadable", "lost", "unequal")
CONTROLS = ("staging",)

_BYTES = 1 << 20
_FILLER = "filler"
_CHECKPOINT, _LOG = _CASES = ("no space for a checkpoint", "no space for the log")


def trials(*, sample: bool) -> Iterator[tuple[str, str, int]]:
    """Yield the safety that is taken out, the case and the number of each trial."""
    for number in range(1 if sample else 25):
        yield from (("", case, number) for case in _CASES)
    for number in range(1 if sample else 10):
        yield "staging", _CHECKPOINT, number


def run(safety: str, case: str, draw: random.Random) -> Row:
    """Fill the disk within a run, look at the files, make space and go on."""
    with tempfile.TemporaryDirectory() as scratch, _small_disk(Path(scratch) / "disk") as disk:
        if case == _LOG:  # which never ends a run
            ended = again = in_child(partial(_log, disk, draw.randint(1, 17)), seconds=60)
            named = ended.code == 0
        else:
            ended = in_child(partial(_save, safety, disk, draw.randint(150, 600)), seconds=60)
            named = ended.error.startswith("finetune.errors.CheckpointError")
        damaged, now = len(unreadable(disk)), progress(disk)
        (disk / _FILLER).unlink(missing_ok=True)
        if case != _LOG:
            again = in_child(partial(_save, "", disk), seconds=60)
    lost, equal = case != _LOG and not now, again.value == _reference()
    return {
        **{"full": 1, "named": int(named), "unnamed": int(not named), "unreadable": damaged, "lost": int(lost)},
        **{"equal": int(equal), "unequal": int(not equal), "error": f"{ended.error} {again.error}".strip()},
    }


class _FillAt(Callback):
    """Fill a disk after a step."""

    def __init__(self, disk: Path, step: int) -> None:
        self.disk, self.step = disk, step
        self.steps = 0

    def on_step_end(self, run: Any) -> None:
        self.steps += 1
        if self.steps == self.step:
            _fill(self.disk)


def _log(disk: Path, step: int) -> str:
    """Train with a log on the disk, which is full after a step."""
    return _train(callbacks=[_FillAt(disk, step), CSVLogger(disk / "log.csv")])


def _save(safety: str, disk: Path, chunk: int = 0) -> str:
    """Train with checkpoints on the disk, which is full after some chunks of these are written; 0 never."""
    take_out(safety)
    plain, count = digests.byte_chunks, itertools.count(1)

    def chunks(tensor: Tensor) -> Iterator[Any]:
        for part in plain(tensor):
            if next(count) == chunk:
                _fill(disk)
            yield part

    tensor_file.byte_chunks = chunks  # type: ignore[attr-defined, assignment]
    return _train(callbacks=[ModelCheckpoint(disk, every_steps=1)], checkpoint_dir=disk, resume_from="auto")


def _train(**options: Any) -> str:
    tuner = FineTuner(convolutions(), device="cpu").replace_head(3)
    tuner.fit(
        *(images(), images(12)), epochs=3, batch_size=8, lr=1e-2, strategy="full_finetune", progress=False, **options
    )
    return digest(tuner)


def _fill(disk: Path) -> None:
    with (disk / _FILLER).open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


@cache
def _reference() -> str:
    with tempfile.TemporaryDirectory() as place:
        _save("", Path(place) / "first")  # imports what training needs
        return str(in_child(partial(_save, "", Path(place) / "run")).value)


@contextmanager
def _small_disk(place: Path) -> Iterator[Path]:
    """Mount a small file system in memory, which only root can."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_BYTES}", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
