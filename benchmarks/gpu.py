"""Measure images per second, fraction of peak and the costliest operation, for ResNet-50 and ViT-B/16.

    python -m benchmarks.gpu                                # on CUDA, bf16
    python -m benchmarks.gpu --device cpu --smallest        # a smoke test

Each row is one `fit` over images in memory. The rate excludes the first epoch, which fills the caches and chooses
kernels. The fraction of peak counts the operations of an uncached step with the same frozen layers, forward and
backward, with two operations per multiply-add. A cached step skips most of them, so its fraction may exceed 1. The
profile covers the second epoch.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import processor
from benchmarks.rows import Row
from finetune import FineTuner
from finetune.callbacks import Callback

PEAK = 790e12  # dense bf16 operations per second, measured on an H100 and an H200
PARTS = {
    "resnet50": {"head only": ["fc"], "last stage": ["layer4", "fc"], "full": ["*"]},
    "vit_b_16": {
        "head only": ["heads"],
        "last stage": ["encoder.layers.encoder_layer_11", "encoder.ln", "heads"],
        "full": ["*"],
    },
}
_SMALLEST = {"resnet18": PARTS["resnet50"]}


def measure(name: str, part: str, patterns: list[str], cache: bool, options: argparse.Namespace) -> Row:
    """Run `fit` and return its row: rate, fraction of peak, memory and the costliest operation."""
    from torchvision import models

    torch.manual_seed(0)
    model = models.get_model(name, weights=None)
    tuner = FineTuner(
        model,
        preprocessing={"crop_size": (options.size, options.size)},
        device=options.device,
        precision=options.precision,
    )
    tuner.freeze("*").unfreeze(patterns)
    X = torch.randint(256, (options.samples, 3, options.size, options.size), dtype=torch.uint8)
    y = torch.arange(options.samples) % 1000

    def fit(epochs: int, *callbacks: Callback) -> list[dict[str, Any]]:
        history = tuner.fit(
            (X, y), val=False, epochs=epochs, batch_size=options.batch, augment=False, progress=False,
            cache="auto" if cache else False, lr=1e-4, callbacks=callbacks,
        )  # fmt: skip
        return list(history)[-epochs:]

    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rate = statistics.median(row["samples_per_second"] for row in fit(options.epochs)[1:])
    memory = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
    operations = operations_of_a_step(model, options.size, options.device)
    profiled = Profiled(options.device)
    fit(max(2, options.epochs), profiled)
    return {
        "model": name,
        "part": part,
        "cache": cache,
        "rate": rate,
        "operations": operations,
        "fraction": rate * operations / options.peak,
        "memory": memory,
        "cost": largest_cost(profiled.profile, options.device),
    }


def operations_of_a_step(model: nn.Module, size: int, device: str) -> int:
    """Return the floating-point operations of an uncached training step, per image, with the current frozen layers."""
    X = torch.randn(2, 3, size, size, device=device)
    with FlopCounterMode(display=False) as counter:
        model(X).float().sum().backward()
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops()) // 2


class Profiled(Callback):
    """Profile the second epoch of a run."""

    def __init__(self, device: str) -> None:
        self.profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
        )
        self._epochs = 0

    def on_epoch_begin(self, run: Any) -> None:
        self._epochs += 1
        if self._epochs == 2:
            self.profile.start()

    def on_epoch_end(self, run: Any) -> None:
        if self._epochs == 2:
            self.profile.stop()


def largest_cost(profiled: profile, device: str) -> str:
    """Return the operation with the largest share of device time, that share and, on CUDA, the idle time."""
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = [event for event in profiled.key_averages() if getattr(event, field) > 0]
    total = sum(getattr(event, field) for event in events)
    largest = max(events, key=lambda event: getattr(event, field))
    text = f"{largest.key[:60]}, {getattr(largest, field) / total:.0%}"
    if device == "cuda":
        times = [(event.time_range.start, event.time_range.end) for event in profiled.events()]
        whole = max(end for _, end in times) - min(start for start, _ in times)
        text += f"; device idle {max(0.0, 1 - total / whole):.0%}"
    return text


def table(rows: list[Row], options: argparse.Namespace) -> str:
    """Return the table as Markdown."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    lines = [
        "# Images per second",
        "",
        f"Written by `python -m benchmarks.gpu` on {date.today().isoformat()}: torch {torch.__version__}, Python "
        f"{platform.python_version()}, {device}, peak assumed to be {options.peak / 1e12:.0f} TFLOP/s. "
        f"{options.samples} images of {options.size} px in memory, batches of {options.batch}, {options.precision}, "
        f"median of epochs 2 to {options.epochs}. Operations are those of an uncached step; a cached step skips most.",
        "",
        "| model | trainable | cache | images/s | GFLOP per image | of peak | memory, GB | costliest operation |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['model']} | {row['part']} | {'yes' if row['cache'] else 'no'} | {row['rate']:,.0f} "
        f"| {row['operations'] / 1e9:.1f} | {row['fraction']:.1%} | {row['memory'] / 1e9:.1f} | {row['cost']} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure every model and trainable part with and without the cache, updating the table after each run."""
    options = _parser().parse_args(arguments)
    rows: list[Row] = []
    for name, parts in (_SMALLEST if options.smallest else PARTS).items():
        for part, patterns in parts.items():
            for cache in (False, True) if part != "full" else (False,):
                rows.append(measure(name, part, patterns, cache, options))
                print(rows[-1], flush=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(table(rows, options))
    print(f"wrote {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="device to train on (default: %(default)s)")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=8192, help="number of images (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs per run (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="image size in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="batch size (default: %(default)s)")
    parser.add_argument("--peak", type=float, default=PEAK, help="peak FLOP/s of the device (default: %(default).3g)")
    parser.add_argument("--smallest", action="store_true", help="use a ResNet-18 only, as a smoke test")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.md"), help="path of the table")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
