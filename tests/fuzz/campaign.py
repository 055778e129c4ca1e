"""Campaigns of fuzzing: mutate files, read them within limits, and keep those that end in another way than promised.

With atheris installed, the branches that a file reaches decide whether it is mutated further. Without it, files are
mutations of the seeds and of each other at random.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import torch

from tests.fuzz.readers import READERS, Reader

_ADDRESS_SPACE = 12 << 30
_MOST_RECORDS = 100  # log records and warnings for one file; Pillow has one for each damaged tag of a TIFF
_HANG = 30  # times the limit of seconds, after which a process ends that waits or does not come back to Python
_STATISTICS = 100  # files after which the statistics are written
_LARGEST = 1 << 17  # bytes of a file
_KEPT = 300  # files that are mutated further, without atheris


class TimeUp(BaseException):
    """A file takes longer to read than it may."""


class Campaign:
    """The files that were read, and what was found.

    Args:
        reader: The reader.
        folder: Folder for the findings, the statistics, and the file that is being read.
        limited: Whether to measure memory and time.
    """

    def __init__(self, reader: Reader, folder: Path, *, limited: bool = True) -> None:
        self.reader = reader
        self.folder = folder
        self.limited = limited
        self.outcomes: Counter[str] = Counter()
        self.findings: dict[str, Path] = {}
        self.slowest = self.largest = 0.0
        self._records = _Records()
        folder.mkdir(parents=True, exist_ok=True)

    def try_one(self, content: bytes) -> str:
        """Read a file, and return the outcome: a word, or the finding."""
        (self.folder / "current").write_bytes(content)
        before = _peak(reset=True) if self.limited else 0
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as name, _time_limit(self.reader.seconds if self.limited else 0):
            outcome = self._read(content, Path(name))
        grown = (_peak() if self.limited else 0) - before
        if grown > self.reader.megabytes:
            outcome = self._keep(f"memory after {outcome.partition(':')[0]}", content, f"{grown:.0f} MB")
        self.outcomes[outcome if outcome in ("loaded", "refused") else "found"] += 1
        self.slowest = max(self.slowest, time.process_time() - begun)
        self.largest = max(self.largest, grown)
        if not self.outcomes.total() % _STATISTICS:
            self.write()
        return outcome

    def write(self) -> None:
        """Write the statistics."""
        figures = {**self.outcomes, "seconds at most": round(self.slowest, 1), "MB at most": round(self.largest)}
        (self.folder / "figures.json").write_text(json.dumps(figures))

    def _read(self, content: bytes, folder: Path) -> str:
        try:
            with self._records.counted() as counted:
                outcome = self.reader.read(content, folder)
            if counted() > _MOST_RECORDS:
                return self._keep("records", content, f"{counted()} warnings and log records")
            return outcome
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/finetune/" in frame.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside"
            name = f"{type(error).__name__} {where}"
            return self._keep(name, content, "".join(traceback.format_exception(error)))

    def _keep(self, name: str, content: bytes, details: str) -> str:
        if name not in self.findings:
            self.findings[name] = self.folder / f"found-{hashlib.sha256(content).hexdigest()[:12]}"
            self.findings[name].write_bytes(content)
            self.findings[name].with_suffix(".txt").write_text(f"{name}\n{details}", errors="replace")
        return f"{name}: {details[-300:]}"


class _Records(logging.Handler):
    """Counts the log records of the package, and warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        logging.getLogger("finetune").addHandler(self)
        logging.getLogger("finetune").propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()
        self.count += 1

    @contextmanager
    def counted(self) -> Iterator[Callable[[], int]]:
        self.count = 0
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield lambda: self.count + len({str(each.message) for each in warned})


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeUp after some seconds of computation, and end the process if that has no effect. 0 for no limit."""

    def up(number: int, frame: FrameType | None) -> None:
        raise TimeUp

    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(_HANG * seconds, exit=True)
    before = signal.signal(signal.SIGPROF, up)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of this process, as others may be busy
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        faulthandler.cancel_dump_traceback_later()


def _peak(*, reset: bool = False) -> float:
    """Return the largest resident size of the process since it was reset, in MB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def mutations(reader: Reader, rng: Random) -> Iterator[bytes]:
    """Yield the seeds, and then mutations of them and of each other, without end."""
    kept = list(reader.seeds())
    yield from kept
    seeds = len(kept)
    while True:
        content = reader.mutate(rng, rng.choice(kept))[:_LARGEST]
        yield content
        if not rng.randrange(4):
            if len(kept) < _KEPT:
                kept.append(content)
            else:
                kept[rng.randrange(seeds, _KEPT)] = content


def run(name: str, folder: Path, seconds: float, seed: int) -> None:
    """Fuzz a reader in this process, which does not return with atheris."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reader = READERS[name]
    for content in reader.seeds():  # imports what is imported on first use
        Campaign(reader, folder, limited=False).try_one(content)
    campaign = Campaign(reader, folder)
    guided = sys.modules.get("atheris")
    if guided is not None:
        _run_guided(guided, campaign, seconds, seed)
    end = time.monotonic() + seconds
    for content in mutations(reader, Random(seed)):
        if time.monotonic() > end:
            break
        campaign.try_one(content)
    campaign.write()


def _run_guided(atheris: Any, campaign: Campaign, seconds: float, seed: int) -> None:
    corpus = campaign.folder.parent / "corpus"
    corpus.mkdir(exist_ok=True)
    for content in campaign.reader.seeds():
        (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)

    def mutate(content: bytes, most: int, number: int) -> bytes:
        rng = Random(number)
        if rng.randrange(4):
            return campaign.reader.mutate(rng, content)[:most]
        return bytes(atheris.Mutate(content, most))

    def try_one(content: bytes) -> None:
        campaign.try_one(content)

    options = {
        "max_total_time": max(1, round(seconds)), "seed": seed, "timeout": 3600, "rss_limit_mb": 0, "max_len": _LARGEST,
        "len_control": 0, "print_final_stats": 1, "artifact_prefix": f"{campaign.folder}/",
    }  # fmt: skip
    arguments = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], try_one, custom_mutator=mutate)
    atheris.Fuzz()
