"""Pictures per second of two processes with one thread each, beside one process with two threads.

A ResNet-18 on pictures in memory, side by side in turns; the ratio is the median of the turns. The cores are the same
two, so a ratio of 1 says that nothing is lost between the processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.rows import Row
from finetune import FineTuner
from tests.helpers.worlds import in_processes

TITLE = "Throughput"

_SIZE = 96
_SAMPLES = 192
_CASES: dict[str, dict[str, Any]] = {
    "head, each batch through the frozen layers": {"cache": False},
    "head, frozen layers computed once": {"cache": "memory"},
    "last stage": {"cache": False},
    "all layers": {"cache": False},
}


def trials(*, sample: bool) -> Iterator[tuple[str, ...]]:
    """Yield the name of each case."""
    yield from [(name,) for name in ([*_CASES][:1] if sample else _CASES)]


def run(name: str) -> Row:
    """Measure in turns."""
    ratios, one, two = [], [], []
    for _ in range(3):
        one.append(in_processes(1, lambda rank: _speed(name, 1))[0])
        two.append(in_processes(2, lambda rank: _speed(name, 2))[0])
        ratios.append(two[-1] / one[-1])
    return {"one": median(one), "two": median(two), "ratio": median(ratios), "errors": []}


def wrong(row: Row) -> bool:
    """Return False: a speed is no fault."""
    return False


def table(rows: Sequence[Row]) -> str:
    """Return speeds and ratios."""
    lines = ["| trained | one process, pictures/s | two processes | ratio |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {row['key'][1]} | {row['one']:,.0f} | {row['two']:,.0f} | {row['ratio']:.2f} |" for row in rows]
    return "\n".join(lines)


def _speed(name: str, size: int) -> float:
    """Return the samples per second of the fastest epoch after the first."""
    torch.set_num_threads(2 // size)
    torch.manual_seed(0)
    tuner = FineTuner("resnet18", weights=None, device="cpu")
    tuner.replace_head(3)
    if name != "all layers":
        tuner.freeze()
    if name == "last stage":
        tuner.unfreeze("layer4")
    images = torch.randn(_SAMPLES, 3, _SIZE, _SIZE), torch.arange(_SAMPLES) % 3
    history = tuner.fit(images, epochs=4, batch_size=32 // size, progress=False, lr=1e-3, **_CASES[name])
    return max(float(row["samples_per_second"]) for row in history[1:])
