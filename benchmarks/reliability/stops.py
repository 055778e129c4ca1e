"""SIGTERM at random moments of every kind of work, to the process and its workers. The same call then goes on."""

from __future__ import annotations

import atexit
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.digests import digest, layers, numbers
from benchmarks.reliability.children import Child, Shared, in_child
from benchmarks.reliability.safeties import take_out
from benchmarks.rows import Row
from finetune import CheckpointError, FineTuner, advise, compare
from finetune.callbacks import Callback, ModelCheckpoint
from finetune.checkpoint import schema
from finetune.checkpoint.resume import LAST

TITLE = "Stopped work"
COUNTS = {
    "signals": "signals",
    "ended": "ended with 143",
    "hung": "hung",
    "resumed": "done on the second call",
    "lost": "lost updates",
}
FAULTS = ("hung", "unended", "unresumed", "lost")
CONTROLS = ("heeding signals", "looking for signals")

_PATIENCE = 5.0  # seconds after which a process that was told to end counts as hung
_SAMPLE = 0.02  # seconds that a sample takes while the work is stopped
_NOTHING: Callable[[int], None] = lambda updates: None  # noqa: E731


class Slow(Dataset[tuple[Tensor, int]]):
    """A data set whose samples take time."""

    def __init__(self, seconds: float, samples: int = 96) -> None:
        self.seconds = seconds
        self.inputs, self.labels = numbers(samples)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        time.sleep(self.seconds)
        return self.inputs[i], int(self.labels[i])


class CountUpdates(Callback):
    """Pass on the number of updates after each."""

    def __init__(self, seen: Callable[[int], None]) -> None:
        self.seen = seen
        self.updates = 0

    def on_step_end(self, run: Any) -> None:
        self.updates = len(run.tuner.history) * run.steps_per_epoch + run.position.window
        self.seen(self.updates)


class Work:
    """A kind of work.

    Args:
        place: Folder to keep results in.
        seconds: Time that a sample takes.
        seen: Function that is told the number of updates.
    """

    def __init__(self, place: Path, seconds: float = 0.0, seen: Callable[[int], None] = _NOTHING) -> None:
        self.place, self.seconds, self.seen = place, seconds, seen

    def training(self) -> str:
        """Train."""
        return self._fit(Slow(self.seconds), epochs=12)

    def workers(self) -> str:
        """Train on data that two workers load."""
        return self._fit(DataLoader(Slow(self.seconds), batch_size=8, num_workers=2), batch_size=None, epochs=24)

    def saving(self) -> str:
        """Train with a checkpoint after every update."""
        writer = ModelCheckpoint(self.place, every_steps=1)
        return self._fit(Slow(0.0), callbacks=[writer], epochs=12)

    def evaluation(self) -> str:
        """Train on a few samples, and evaluate on many."""
        return self._fit(numbers(48), Slow(self.seconds, 960), epochs=2)

    def prefix(self) -> str:
        """Train a head on the features of frozen layers, which are computed first."""
        return self._fit(Slow(self.seconds, 960), strategy="linear_probe", cache="memory", epochs=3)

    def loading(self) -> str:
        """Train on a folder of large images, all of which are checked first."""
        folder = _images()
        torch.manual_seed(0)
        model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
        preprocessing = {"crop_size": (8, 8), "resize_size": 8}
        return self._fit(folder, tuner=FineTuner(model, device="cpu", preprocessing=preprocessing), epochs=1)

    def rates(self) -> str:
        """Search for learning rates."""
        return str(FineTuner(layers(), device="cpu").find_lr(Slow(self.seconds), batch_size=16).lr)

    def advice(self) -> str:
        """Ask for advice."""
        advise({"layers": layers}, Slow(self.seconds, 960))
        return "advice"

    def comparison(self) -> str:
        """Compare strategies."""
        strategies = ("linear_probe", "full_finetune")
        found = compare(
            layers, Slow(self.seconds), 0.2, strategies=strategies, seeds=2, budget=3, folder=self.place, progress=False
        )
        return str([row.value for row in found.rows] if hasattr(found, "rows") else found)

    def _fit(self, data: Any, val: Any = None, *, tuner: FineTuner | None = None, **options: Any) -> str:
        tuner = tuner or FineTuner(layers(), device="cpu")
        options = {"batch_size": 16, "lr": 1e-2, "strategy": "full_finetune", "cache": False, **options}
        callbacks = [CountUpdates(self.seen), *options.pop("callbacks", [])]
        options = {key: value for key, value in options.items() if value is not None}
        tuner.fit(
            data, val, checkpoint_dir=self.place, resume_from="auto", callbacks=callbacks, progress=False, **options
        )
        return digest(tuner)


KINDS = ("training", "workers", "saving", "evaluation", "prefix", "loading", "rates", "advice", "comparison")


def trials(*, sample: bool) -> Iterator[tuple[str, str, int]]:
    """Yield the safety that is taken out, the kind of work and the number of each trial."""
    for number in range(1 if sample else 12):
        yield from (("", kind, number) for kind in KINDS)
    for safety in CONTROLS:
        yield from ((safety, kind, 0) for kind in (("training",) if sample else KINDS))


def run(safety: str, kind: str, draw: random.Random) -> Row:
    """Stop some work at a random moment, and do it again."""
    reference = _reference(kind)
    with tempfile.TemporaryDirectory() as scratch:
        place, updates = Path(scratch) / "run", Shared(2)
        child = Child(partial(_work, safety, kind, place, updates))
        while child.is_running() and not updates[1]:
            time.sleep(0.001)
        time.sleep(draw.uniform(0.05, 2.0))
        running = child.is_running()
        begun = time.monotonic()
        if running:
            child.signal(signal.SIGTERM)
        ended = child.wait(_PATIENCE)
        seconds = time.monotonic() - begun
        lost = updates[0] - _updates(place)
        again = in_child(getattr(Work(place), kind), seconds=120)
    resumed = again.value == reference
    return {
        "signals": int(running),
        "ended": int(running and ended.code == 143),
        "hung": int(ended.hung),
        "unended": int(running and ended.code != 143 and not ended.hung),
        "resumed": int(resumed),
        "unresumed": int(not resumed),
        "lost": max(0, lost),
        "latency": seconds,
        "error": ended.error or again.error,
    }


def _work(safety: str, kind: str, place: Path, updates: Shared) -> str:
    take_out(safety)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def seen(count: int) -> None:
        updates[0] = count

    work = Work(place, _SAMPLE, seen)
    updates[1] = 1
    return str(getattr(work, kind)())


def _updates(place: Path) -> int:
    """Return the number of updates in the checkpoint of a run."""
    with suppress(CheckpointError):
        found = schema.read(place / LAST)
        training = found.training or {}
        return len(found.history) * int(training["steps_per_epoch"] or 0) + int(training["position"]["window"])
    return 0


@cache
def _reference(kind: str) -> Any:
    with tempfile.TemporaryDirectory() as scratch:
        getattr(Work(Path(scratch) / "first"), kind)()  # imports what the work needs
        return in_child(getattr(Work(Path(scratch) / "run"), kind)).value


@cache
def _images() -> Path:
    """Write forty images of four million pixels, which take a twentieth of a second each to decode."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for i in range(40):
        (folder / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2000, 2000), (i, 2 * i, 40)).save(folder / f"class{i % 2}" / f"{i}.png")
    return folder
