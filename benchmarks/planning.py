"""Compare the time of `fit` with `cache="auto"` and `cache=False`, alternating the two in one process.

    python -m benchmarks.planning
    python -m benchmarks.planning --seconds 20 --case "digits, head"
    python -m benchmarks.planning --seconds 0 --case "digits, head, few" --out smoke.md     # a smoke test

The cases are those in which caching pays least: few epochs, few samples, few frozen layers, or a network so small that
reading its features costs as much as computing them.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.machine import processor
from finetune import FineTuner
from finetune.demo import DigitNet

RESULTS = Path(__file__).parent / "results" / "planning.md"
ALLOWED = 1.05  # largest acceptable ratio of times
_MIN_ROUNDS = 5

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A network, the patterns of its trainable layers, and the amount of data."""

    name: str
    model: Callable[[], nn.Module]
    trains: tuple[str, ...]
    shape: tuple[int, ...]
    samples: int
    epochs: int

    def seconds(self, images: Images, cache: str | bool) -> float:
        """Return the duration of one call of `fit` in seconds."""
        torch.manual_seed(0)
        size = self.shape[1:]
        preprocessing = {"crop_size": size, "resize_size": None, "channels": self.shape[0],
                         "mean": (0.5,) * self.shape[0], "std": (0.5,) * self.shape[0]}  # fmt: skip
        tuner = FineTuner(self.model(), preprocessing=preprocessing, device="cpu")
        tuner.freeze("*").unfreeze(self.trains)
        begun = time.perf_counter()
        tuner.fit(images, val=False, epochs=self.epochs, augment=False, progress=False, cache=cache)
        return time.perf_counter() - begun

    def images(self) -> Images:
        """Return random images uint8 [N, C, H, W] and their labels."""
        generator = torch.Generator().manual_seed(0)
        return (
            torch.randint(256, (self.samples, *self.shape), dtype=torch.uint8, generator=generator),
            torch.arange(self.samples) % 10,
        )


def _resnet18() -> nn.Module:
    from torchvision.models import resnet18

    model: nn.Module = resnet18(num_classes=10)
    return model


def cases() -> list[Case]:
    """Return the cases of each network, from those in which caching pays most to those in which it cannot."""
    digit, small = (1, 8, 8), (3, 64, 64)
    resnet = _resnet18
    last, all_but_stem = ("layer4", "fc"), ("layer1", "layer2", "layer3", "layer4", "fc")
    return [
        Case("ResNet-18, head, 3 epochs", resnet, ("fc",), small, 256, 3),
        Case("ResNet-18, head, 2 epochs", resnet, ("fc",), small, 256, 2),
        Case("ResNet-18, head, 1 epoch", resnet, ("fc",), small, 256, 1),
        Case("ResNet-18, head, few samples", resnet, ("fc",), small, 16, 3),
        Case("ResNet-18, last stage, 3 epochs", resnet, last, small, 256, 3),
        Case("ResNet-18, all but the stem, 3 epochs", resnet, all_but_stem, small, 128, 3),
        Case("ResNet-18, everything, 2 epochs", resnet, ("*",), small, 128, 2),
        Case("digits, head, 3 epochs", lambda: DigitNet(10), ("head",), digit, 1500, 3),
        Case("digits, head, 20 epochs", lambda: DigitNet(10), ("head",), digit, 1500, 20),
        Case("digits, head, few samples", lambda: DigitNet(10), ("head",), digit, 50, 5),
        Case("digits, last stage, 5 epochs", lambda: DigitNet(10), ("layer3", "head"), digit, 1500, 5),
        Case("digits, all but the stem, 5 epochs", lambda: DigitNet(10), ("layer*", "head"), digit, 1500, 5),
    ]


def measure(case: Case, seconds: float) -> list[tuple[float, float]]:
    """Return the seconds without a cache and with `"auto"` in each round, alternating the order of the two.

    Rounds repeat until their times add up to `seconds`, so that short cases, whose times vary most, get more rounds.
    """
    images = case.images()
    both: list[dict[str | bool, float]] = []
    while len(both) <= _MIN_ROUNDS or sum(sum(times.values()) for times in both) < seconds:
        order: tuple[str | bool, ...] = (False, "auto") if len(both) % 2 else ("auto", False)
        both.append({cache: case.seconds(images, cache) for cache in order})
    return [(times[False], times["auto"]) for times in both[1:]]  # the first round warms up


def interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % confidence interval of the median of sorted values, by ranks, in the normal approximation."""
    count = len(ordered)
    reach = 1.96 * count**0.5 / 2
    lowest, highest = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
    return ordered[max(0, lowest)], ordered[min(count - 1, highest)]


def table(measured: dict[Case, list[tuple[float, float]]], threads: int) -> str:
    """Return the table as Markdown."""
    lines = []
    for case, rounds in measured.items():
        ratios = sorted(auto / without for without, auto in rounds)
        middle, (low, high) = statistics.median(ratios), interval(ratios)
        kept = "yes" if middle <= ALLOWED else "**no**" if low > ALLOWED else "undecided"
        medians = " | ".join(f"{statistics.median(times):.2f}" for times in zip(*rounds, strict=True))
        lines.append(
            f"| {case.name} | {case.samples} | {len(rounds)} | {medians} | {middle:.2f} "
            f"| {low:.2f} to {high:.2f} | {kept} |"
        )
    return "\n".join([
        "# The cost of `cache=\"auto\"`",
        "",
        f"Written by `python -m benchmarks.planning` on {date.today().isoformat()}: torch {torch.__version__}, Python "
        f"{platform.python_version()}, {processor()}, {threads} thread(s). Whole calls of `fit`, alternating in one "
        f"process. The ratio is the median over rounds of `\"auto\"` to `False`, with a 95 % interval by ranks.",
        "",
        f"| case | samples | rounds | False, s | auto, s | ratio | interval | at most {ALLOWED:.2f} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
        *lines,
    ]) + "\n"  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the requested cases, updating the table after each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="time to spend per case (default: %(default)g)")
    parser.add_argument("--case", default="", help="run only cases whose name starts with this")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="path of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    measured: dict[Case, list[tuple[float, float]]] = {}
    for case in cases():
        if case.name.startswith(options.case):
            measured[case] = measure(case, options.seconds)
            print(case.name, [f"{without:.2f} {auto:.2f}" for without, auto in measured[case]], flush=True)
            options.out.write_text(table(measured, options.threads))


if __name__ == "__main__":
    main()
