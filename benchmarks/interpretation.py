"""Measure what `interpret` costs beyond the forward pass that it needs.

    python -m benchmarks.interpretation
    python -m benchmarks.interpretation --samples 200 --rounds 3

Whole calls of `predict`, and of `interpret` with its page as text and as HTML, alternate over the same images in memory
and in files. The answers are random, so that nearly every one is a mistake, which is the most work.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.models import resnet18

from benchmarks.machine import processor
from benchmarks.planning import interval
from finetune import FineTuner

RESULTS = Path(__file__).parent / "results" / "interpretation.md"
CLASSES = (2, 10, 120, 1000)
ALLOWED = 1.10
_SIZE = 64


def names(classes: int) -> list[str]:
    """Return class names in the order of their folders."""
    return [f"class {label:04}" for label in range(classes)]


def images(folder: Path, samples: int, classes: int) -> dict[str, Any]:
    """Return random images as arrays, and the folder that they are also written to as JPEG files."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (samples, 3, 8, 8), dtype=torch.uint8, generator=generator)
    X = coarse.repeat_interleave(_SIZE // 8, 2).repeat_interleave(_SIZE // 8, 3)
    y = torch.arange(samples) % classes
    for place in range(samples):
        path = folder / names(classes)[int(y[place])] / f"{place}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(X[place].permute(1, 2, 0).numpy()).save(path)
    return {"arrays": (X, y), "files": folder}


def rounds(tuner: FineTuner, data: Any, count: int) -> Iterator[tuple[float, float]]:
    """Yield the seconds of `predict` and of `interpret` in each round, the order of the two alternating."""

    def interpret(data: Any) -> None:
        found = tuner.interpret(data)
        assert str(found)
        assert found._repr_html_()

    for number in range(count + 1):
        functions: list[Callable[[Any], Any]] = [tuner.predict, interpret]
        taken = {function: _seconds(function, data) for function in functions[:: 1 if number % 2 else -1]}
        if number:  # the first round warms up
            yield taken[functions[0]], taken[functions[1]]


def _seconds(function: Callable[[Any], Any], data: Any) -> float:
    begun = time.perf_counter()
    function(data)
    return time.perf_counter() - begun


def table(measured: dict[tuple[str, int], list[tuple[float, float]]], samples: int, threads: int) -> str:
    """Return the table as Markdown."""
    lines = []
    for (form, classes), times in measured.items():
        ratios = sorted(interpreted / predicted for predicted, interpreted in times)
        middle, (low, high) = statistics.median(ratios), interval(ratios)
        seconds = " | ".join(f"{statistics.median(each):.2f}" for each in zip(*times, strict=True))
        kept = "yes" if middle < ALLOWED else "**no**"
        lines.append(f"| {form} | {classes:,} | {seconds} | {middle:.3f} | {low:.3f} to {high:.3f} | {kept} |")
    return "\n".join([
        "# The cost of `interpret`",
        "",
        f"Written by `python -m benchmarks.interpretation` on {date.today().isoformat()}: torch {torch.__version__}, "
        f"Python {platform.python_version()}, {processor()}, {threads} thread(s). ResNet-18 on {samples:,} images of "
        f"{_SIZE} pixels. `predict`, and `interpret` with its page as text and HTML, in turns. The ratio is the median "
        f"over rounds, with a 95 % interval by ranks.",
        "",
        f"| images | classes | predict, s | interpret, s | ratio | interval | below {ALLOWED:.2f} |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
        *lines,
    ]) + "\n"  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cases, updating the table after each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.interpretation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=2000, help="images per case (default: %(default)d)")
    parser.add_argument("--rounds", type=int, default=8, help="rounds per case (default: %(default)d)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="path of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for classes in CLASSES:
        with tempfile.TemporaryDirectory() as folder:
            tuner = FineTuner(resnet18(num_classes=classes), device="cpu", preprocessing={"crop_size": _SIZE})
            tuner.classes = names(classes)
            for form, data in images(Path(folder), options.samples, classes).items():
                measured[form, classes] = list(rounds(tuner, data, options.rounds))
                print(form, classes, [f"{a:.2f} {b:.2f}" for a, b in measured[form, classes]], flush=True)
                options.out.write_text(table(measured, options.samples, options.threads))


if __name__ == "__main__":
    main()
