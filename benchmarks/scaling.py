"""Measure how time and memory of `fit` grow with samples, epochs, image size and depth, for each kind of cache.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --axis samples --cache disk --smallest
    python -m benchmarks.scaling --axis files --axis rows --axis classes

The last three axes are large data: the time until the first step over files in a folder or rows of a CSV file, and the
time of metrics over classes.

Each point runs in its own process, so that peak memory is its own. The model is a convolutional network with all but
the last two layers frozen; at 64 pixels, the cache stores 32 kB per image. Points measured earlier are kept, so an
interrupted run resumes.
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
from benchmarks.opening import opening
from finetune import FineTuner
from finetune.errors import ArgumentError

Point = dict[str, Any]

BASE = {"samples": 1024, "epochs": 4, "size": 64, "depth": 4}
AXES = {
    "samples": (512, 1024, 2048, 4096),
    "epochs": (2, 4, 8, 16),
    "size": (32, 64, 96, 128),  # cost grows with its square
    "depth": (2, 4, 8, 16),
}
LARGE = {
    "files": (50_000, 100_000, 200_000),
    "rows": (250_000, 500_000, 1_000_000),
    "classes": (5_000, 10_000, 20_000),
}
CACHES: dict[str, str | bool] = {"memory": "memory", "disk": "disk", "none": False}
_SAMPLING_INTERVAL = 0.02  # seconds between readings of the memory
_SMALLEST = {"samples": 64, "epochs": 1, "size": 16, "depth": 1}


class Net(nn.Module):
    """A stem and `depth` residual 3 x 3 convolutions, to be frozen, then a convolution and a linear layer."""

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
    """Run one `fit` and return its seconds and the peak growth of the process's memory in bytes."""
    for axis in LARGE:
        if axis in point:
            return _measured(point, axis)
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


def _measured(point: Point, axis: str) -> Point:
    with opening(axis, point[axis]) as measured, _PeakOfMemory() as peak:
        seconds = measured()
    return {**point, "seconds": seconds, "bytes": peak.above}


class _PeakOfMemory:
    """Record the peak growth of the process's anonymous memory within the block, in bytes.

    Pages of mapped files do not count: the system reclaims them whenever it needs memory.
    """

    above = 0

    def __enter__(self) -> _PeakOfMemory:
        self._before, self._ended = _anonymous_memory(), threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLING_INTERVAL):
            self.above = max(self.above, _anonymous_memory() - self._before)


def _anonymous_memory() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])


def points(axes: Sequence[str], caches: Sequence[str], smallest: bool) -> list[Point]:
    """Return the points to measure. The base, which all axes share, appears once per cache."""
    part = 100 if smallest else 1
    large = [{axis: value // part} for axis in axes if axis in LARGE for value in LARGE[axis]]
    axes = [axis for axis in axes if axis in AXES]
    if smallest:
        return [{**_SMALLEST, axis: value, "cache": cache} for axis in axes for cache in caches
                for value in (_SMALLEST[axis], 2 * _SMALLEST[axis], 4 * _SMALLEST[axis])] + large  # fmt: skip
    wanted = [{**BASE, axis: value, "cache": cache} for axis in axes for value in AXES[axis] for cache in caches]
    return [point for position, point in enumerate(wanted) if point not in wanted[:position]] + large


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Return intercept, slope and explained variance (R²) of the least-squares line."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - mean_x) ** 2 for one in x)
    slope = sum((one - mean_x) * (other - mean_y) for one, other in zip(x, y, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    left = sum((other - intercept - slope * one) ** 2 for one, other in zip(x, y, strict=True))
    total = sum((other - mean_y) ** 2 for other in y)
    return intercept, slope, 1 - left / total if total else 1.0


def table(measured: Sequence[Point], threads: int, base: Mapping[str, int]) -> str:
    """Return the table as Markdown: the points of each axis and the line fitted to them."""
    parts = [
        "# How cost grows",
        f"Written by `python -m benchmarks.scaling` on {date.today().isoformat()}: torch {torch.__version__}, Python "
        f"{platform.python_version()}, {processor()}, {threads} threads. Each point is one `fit` in a fresh process; "
        f"memory is the peak growth of the process's anonymous resident memory during `fit`. It excludes the images, "
        f"which are loaded before, and pages of mapped files, which the system reclaims when it needs memory. Files "
        f"and rows are measured until the first step, classes by an evaluation with f1, precision and recall. "
        f"The base is {', '.join(f'{value} {name}' for name, value in base.items())}.",
    ]
    done = [point for point in measured if "seconds" in point]
    missing = sorted({f"{point.get('cache')}: {point['missing']}" for point in measured if "missing" in point})
    parts += [f"Left out: {'; '.join(missing)}"] if missing else []
    for axis in (*AXES, *LARGE):
        rows = [_axis(axis, None, done, {})] if axis in LARGE else [_axis(axis, cache, done, base) for cache in CACHES]
        if any(rows):
            parts.append("\n".join([f"## {axis}", "", *_HEADING, *filter(None, rows)]))
    return "\n\n".join(parts) + "\n"


_HEADING = (
    "| cache | points | seconds | R² of a line | ms per unit | MB | kB per unit |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def _axis(axis: str, cache: str | None, done: Sequence[Point], base: Mapping[str, int]) -> str:
    """Return the row of the table for one cache along one axis."""
    others = [name for name in base if name != axis]
    on_it = {point[axis]: point for point in done if axis in point
             if point.get("cache") == cache and all(point[name] == base[name] for name in others)}  # fmt: skip
    values = sorted(on_it)
    if len(values) < 2:
        return ""
    x = [float(value**2 if axis == "size" else value) for value in values]
    seconds, megabytes = ([on_it[value][field] for value in values] for field in ("seconds", "bytes"))
    megabytes = [value / 1e6 for value in megabytes]
    _, slope, explained = line(x, seconds)
    _, more, _ = line(x, megabytes)
    return (
        f"| {cache or 'first step'} | {', '.join(map(str, values))} | {', '.join(f'{value:.2f}' for value in seconds)} "
        f"| {explained:.1%} | {1000 * slope:.3g}{' per pixel' if axis == 'size' else ''} "
        f"| {', '.join(f'{value:.0f}' for value in megabytes)} | {1000 * more:.3g} |"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure the requested points and write the table."""
    options = _parser().parse_args(arguments)
    if options.point:
        print("\n" + json.dumps(_measured_or_missing(json.loads(options.point))))
        return 0
    kept = options.out / "points.jsonl"
    done = [json.loads(text) for text in kept.read_text().splitlines()] if kept.exists() else []
    done = [point for point in done if "seconds" in point]
    wanted = points(options.axis or [*AXES, *LARGE], options.cache or list(CACHES), options.smallest)
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
    except ArgumentError as error:  # an older version without this kind of cache
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axis", action="append", choices=[*AXES, *LARGE], help="vary only this; repeatable")
    parser.add_argument("--cache", action="append", choices=list(CACHES), help="use only this cache; repeatable")
    parser.add_argument("--smallest", action="store_true", help="measure tiny points, as a smoke test")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling"), help="folder for the points")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
