"""Images per second and fraction of the device's peak, for ResNet-50 and ViT-B/16, and what costs most of the rest.

    python -m benchmarks.gpu                                # on CUDA, bf16
    python -m benchmarks.gpu --device cpu --smallest        # to see that it runs

Each row is one `fit` over pictures in memory. The rate is that of the epochs after the first, in which the caches fill
and kernels are chosen. Its fraction of peak counts the operations of a plain step at the same freeze state, forward and
backward, 2 for a multiply-add. A cached step leaves most of these out, so that its fraction may exceed 1. The profile
is of an epoch after the first.
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
from finetune import FineTuner
from finetune.callbacks import Callback

Row = dict[str, Any]

PEAK = 790e12  # dense bf16 operations a second of an H100 or H200, as measured; --peak names another
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
    """Return the row of one run: rate, fraction of peak, memory and the largest cost."""
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
    """Return the floating-point operations of a plain training step for one picture, at the present freeze state."""
    X = torch.randn(2, 3, size, size, device=device)
    with FlopCounterMode(display=False) as counter:
        model(X).float().sum().backward()
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops()) // 2


class Profiled(Callback):
    """Profiles the second epoch of a run."""

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
    """Return the operation on which the device spends most, with its share; on CUDA, how long it was idle too."""
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = [event for event in profiled.key_averages() if getattr(event, field) > 0]
    total = sum(getattr(event, field) for event in events)
    largest = max(events, key=lambda event: getattr(event, field))
    said = f"{largest.key[:60]}, {getattr(largest, field) / total:.0%}"
    if device == "cuda":
        times = [(event.time_range.start, event.time_range.end) for event in profiled.events()]
        whole = max(end for _, end in times) - min(start for start, _ in times)
        said += f"; the device is idle for {max(0.0, 1 - total / whole):.0%}"
    return said


def table(rows: list[Row], options: argparse.Namespace) -> str:
    """Return the Markdown."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    lines = [
        "# Images per second",
        "",
        f"Written by `python -m benchmarks.gpu` on {date.today().isoformat()}: torch {torch.__version__}, Python "
        f"{platform.python_version()}, {device}, peak taken as {options.peak / 1e12:.0f} T operations a second. "
        f"{options.samples} pictures of {options.size} px in memory, batches of {options.batch}, {options.precision}, "
        f"median of epochs 2 to {options.epochs}. Operations are those of a plain step; a cached one leaves most out.",
        "",
        "| model | what trains | cache | images/s | G operations an image | of peak | memory, GB | largest cost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['model']} | {row['part']} | {'yes' if row['cache'] else 'no'} | {row['rate']:,.0f} "
        f"| {row['operations'] / 1e9:.1f} | {row['fraction']:.1%} | {row['memory'] / 1e9:.1f} | {row['cost']} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure every model and part, cached and not, and write the table as it grows."""
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--peak", type=float, default=PEAK, help="operations a second (default: %(default).3g)")
    parser.add_argument("--smallest", action="store_true", help="a ResNet-18 instead, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.md"))
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
