"""Time and memory of `fit` against the number of samples, epochs, pixels and layers, with each kind of cache.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --axis samples --cache disk --smallest

Every point is a process of its own, so that its peak of memory is its own. A network of convolutions of which all but
the last two layers are frozen is trained on pictures in memory; 32 kB of each picture of 64 pixels are stored. Points
that are there are not measured again, so that a run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import processor
from finetune import FineTuner
from finetune.errors import ArgumentError

Point = dict[str, Any]

BASE = {"samples": 1024, "epochs": 4, "size": 64, "depth": 4}
AXES = {
    "samples": (512, 1024, 2048, 4096),
    "epochs": (2, 4, 8, 16),
    "size": (32, 64, 96, 128),  # cost goes with its square
    "depth": (2, 4, 8, 16),
}
CACHES: dict[str, str | bool] = {"memory": "memory", "disk": "disk", "none": False}
_LOOK_EVERY = 0.02  # seconds between looks at the memory
_SMALLEST = {"samples": 64, "epochs": 1, "size": 16, "depth": 1}


class Net(nn.Module):
    """Frozen: a stem and `depth` residual layers of 3 x 3. Trained: a convolution and a linear layer."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, stride=4)
        self.layers = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(depth))
        self.last = nn.Conv2d(32, 32, 2, stride=2)
        self.fc = nn.Linear(32, 10)

    def forward(self, X: Tensor) -> Tensor:
        X = self.stem(X)
        for layer in self.layers:
            X = X + layer(X).relu()
        logits: Tensor = self.fc(self.last(X).relu().mean((2, 3)))
        return logits


def measure(point: Point) -> Point:
    """Return the seconds of one `fit`, and by how many bytes the process's own memory grew at most."""
    size = point["size"]
    X = torch.randint(256, (point["samples"], 3, size, size), dtype=torch.uint8)
    y = torch.arange(len(X)) % 10
    tuner = FineTuner(Net(point["depth"]), preprocessing={"crop_size": (size, size)}, device="cpu")
    tuner.freeze(["stem", "layers"])

    def fit(samples: int, epochs: int) -> None:
        tuner.fit(
            (X[:samples], y[:samples]), val=False, epochs=epochs, augment=False, progress=False,
            cache=CACHES[point["cache"]],
        )  # fmt: skip

    fit(64, 2)
    with _PeakOfMemory() as peak:
        start = time.perf_counter()
        fit(point["samples"], point["epochs"])
        seconds = time.perf_counter() - start
    return {**point, "seconds": seconds, "bytes": peak.above}


class _PeakOfMemory:
    """By how many bytes the process's own memory grows at most within the block.

    Pages of a mapped file are not counted: the system takes them back whenever it needs them, and their number is
    what it had to spare.
    """

    above = 0

    def __enter__(self) -> _PeakOfMemory:
        self._before, self._ended = _own_memory(), threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_EVERY):
            self.above = max(self.above, _own_memory() - self._before)


def _own_memory() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])


def points(axes: Sequence[str], caches: Sequence[str], smallest: bool) -> list[Point]:
    """Return all points to measure; the base, which all axes share, once for each cache."""
    if smallest:
        return [{**_SMALLEST, axis: value, "cache": cache} for axis in axes for cache in caches
                for value in (_SMALLEST[axis], 2 * _SMALLEST[axis], 4 * _SMALLEST[axis])]  # fmt: skip
    wanted = [{**BASE, axis: value, "cache": cache} for axis in axes for value in AXES[axis] for cache in caches]
    return [point for position, point in enumerate(wanted) if point not in wanted[:position]]


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Return intercept, slope and the share of the variance that the line of least squares explains."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - mean_x) ** 2 for one in x)
    slope = sum((one - mean_x) * (other - mean_y) for one, other in zip(x, y, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    left = sum((other - intercept - slope * one) ** 2 for one, other in zip(x, y, strict=True))
    total = sum((other - mean_y) ** 2 for other in y)
    return intercept, slope, 1 - left / total if total else 1.0


def table(measured: Sequence[Point], threads: int, base: Mapping[str, int]) -> str:
    """Return the Markdown: the points of each axis, and the line through them."""
    parts = [
        "# How cost grows",
        f"Written by `python -m benchmarks.scaling` on {date.today().isoformat()}: torch {torch.__version__}, Python "
        f"{platform.python_version()}, {processor()}, {threads} threads. Each point is one `fit` in a fresh process; "
        f"memory is by how much the process's own (anonymous resident) memory grew at most during `fit`, the pictures "
        f"themselves being there before; pages of a mapped file, which the system takes back when it needs them, are "
        f"not counted. The base is {', '.join(f'{value} {name}' for name, value in base.items())}.",
    ]
    done = [point for point in measured if "seconds" in point]
    missing = sorted({f"{point['cache']}: {point['missing']}" for point in measured if "missing" in point})
    parts += [f"Left out: {'; '.join(missing)}"] if missing else []
    for axis in AXES:
        sections = [_axis(axis, cache, done, base) for cache in CACHES]
        parts.append("\n".join([f"## {axis}", "", *_HEADING, *filter(None, sections)]))
    return "\n\n".join(parts) + "\n"


_HEADING = (
    "| cache | points | seconds | a line explains | each further one, ms | MB | each further one, kB |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def _axis(axis: str, cache: str, done: Sequence[Point], base: Mapping[str, int]) -> str:
    """Return the line of the table for one cache along one axis."""
    others = [name for name in base if name != axis]
    on_it = {point[axis]: point for point in done
             if point["cache"] == cache and all(point[name] == base[name] for name in others)}  # fmt: skip
    values = sorted(on_it)
    if len(values) < 2:
        return ""
    x = [float(value**2 if axis == "size" else value) for value in values]
    seconds, megabytes = ([on_it[value][field] for value in values] for field in ("seconds", "bytes"))
    megabytes = [value / 1e6 for value in megabytes]
    _, slope, explained = line(x, seconds)
    _, more, _ = line(x, megabytes)
    return (
        f"| {cache} | {', '.join(map(str, values))} | {', '.join(f'{value:.2f}' for value in seconds)} "
        f"| {explained:.1%} | {1000 * slope:.3g}{' a pixel' if axis == 'size' else ''} "
        f"| {', '.join(f'{value:.0f}' for value in megabytes)} | {1000 * more:.3g} |"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for and write the table."""
    options = _parser().parse_args(arguments)
    if options.point:
        print("\n" + json.dumps(_measured_or_missing(json.loads(options.point))))
        return 0
    kept = options.out / "points.jsonl"
    done = [json.loads(text) for text in kept.read_text().splitlines()] if kept.exists() else []
    done = [point for point in done if "seconds" in point]
    wanted = points(options.axis or list(AXES), options.cache or list(CACHES), options.smallest)
    for point in wanted:
        if any(point.items() <= other.items() for other in done):
            continue
        found = _in_its_own_process(point, options.threads)
        done.append(found)
        print(found, flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with kept.open("a") as file:
            file.write(json.dumps(found) + "\n")
    path = options.out.with_suffix(".md")
    asked_for = [point for point in done if any(one.items() <= point.items() for one in wanted)]
    path.write_text(table(asked_for, options.threads, _SMALLEST if options.smallest else BASE))
    print(f"wrote {path}")
    return 0


def _measured_or_missing(point: Point) -> Point:
    try:
        return measure(point)
    except ArgumentError as error:  # this version knows no such cache
        return {**point, "missing": str(error)}


def _in_its_own_process(point: Mapping[str, Any], threads: int) -> Point:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--point", json.dumps(point)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: Point = json.loads(ended.stdout.splitlines()[-1])
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--axis", action="append", choices=list(AXES), help="one axis instead of all")
    parser.add_argument("--cache", action="append", choices=list(CACHES), help="one cache instead of all")
    parser.add_argument("--smallest", action="store_true", help="tiny points, to see that it runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling"), help="folder of the points")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
