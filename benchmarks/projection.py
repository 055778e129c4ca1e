"""Project a million and a billion pictures on 1, 8 and 256 GPUs: time, memory, network and money.

    python -m benchmarks.projection

What can be measured on this machine is: opening files, reading a picture, the spread of step times, and the speed of
two processes, against which the simulation is checked. The speed of a GPU is NVIDIA's own figure, and links, disks and
prices are assumptions, named in the table. A step is simulated: every GPU draws its time, the slowest one counts, and
the sum of the gradients begins while the backward pass still runs.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median, pstdev

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from benchmarks.machine import processor
from benchmarks.opening import opening
from finetune import FineTuner, Preprocessing
from finetune.callbacks import Callback
from finetune.training.run import Run
from tests.helpers.worlds import in_processes

RESULTS = Path(__file__).parent / "results" / "projection.md"

PICTURES = (10**6, 10**9)
GPUS = (1, 8, 256)
EPOCHS = 3

_BUCKET = 25e6  # bytes of gradients that DistributedDataParallel sums at once
_BACKWARD = 2 / 3  # of the time of a step
_STEPS = 400  # simulated


@dataclass(frozen=True)
class Cluster:
    """Speeds of what a run uses. Rates are per second.

    Attributes:
        pictures: Pictures that a GPU trains all layers on.
        forward: Pictures that run through a GPU without a backward pass.
        spread: Standard deviation of the time of a step, as a fraction of it.
        cores: Cores per GPU.
        read: Pictures that a core decodes, resizes and crops.
        gpus: GPUs per machine.
        inside: Bytes between two GPUs of a machine.
        between: Bytes between two machines, per GPU.
        latency: Seconds until a message arrives.
        disk: Bytes that a machine reads from its disk.
        price: Dollars per GPU and hour.
    """

    pictures: float = 2470  # ResNet-50 at 224 pixels, A100, mixed precision
    forward: float = 2470 * 3382 / 1200  # as a V100 is faster without a backward pass
    spread: float = 0.03
    cores: int = 16
    read: float = 100
    gpus: int = 8
    inside: float = 230e9
    between: float = 20e9
    latency: float = 1e-5
    disk: float = 3e9
    price: float = 2.0

    def sum_seconds(self, size: float, gpus: int) -> float:
        """Return the seconds of a ring's sum of `size` bytes over GPUs."""
        if gpus == 1:
            return 0.0
        rate = self.inside if gpus <= self.gpus else min(self.inside, self.between)
        return 2 * (gpus - 1) / gpus * size / rate + 2 * (gpus - 1) * self.latency

    def step_seconds(self, compute: float, size: float, gpus: int) -> float:
        """Return the mean seconds of a step: the slowest GPU's, and what of the sum does not hide behind it.

        Args:
            compute: Seconds of a step on one GPU.
            size: Bytes of the gradients.
            gpus: Number of GPUs.
        """
        draws = np.random.default_rng(0).lognormal(-(self.spread**2) / 2, self.spread, (_STEPS, gpus))
        slowest = compute * float(draws.max(axis=1).mean())
        whole, last = self.sum_seconds(size, gpus), self.sum_seconds(min(size, _BUCKET), gpus)
        return slowest + max(last, whole - _BACKWARD * compute)

    def reading(self, gpus: int) -> float:
        """Return the pictures that all cores read."""
        return self.read * self.cores * gpus


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        name: Words for it.
        gradients: Bytes of gradients in an update.
        stored: Bytes of a sample's stored activations; 0 if nothing is frozen.
        batch: Samples per GPU and step.
    """

    name: str
    gradients: float
    stored: float
    batch: int = 256


JOBS = (
    Job("all layers", gradients=25.6e6 * 4, stored=0),
    Job("head, the rest computed once", gradients=2048 * 1000 * 4, stored=2048 * 4),
)
_PICTURE = 110e3  # bytes of an ImageNet JPEG
_ENTRY = 150.0  # bytes of memory per file in the list of a folder


def project(job: Job, pictures: int, gpus: int, cluster: Cluster) -> dict[str, float]:
    """Return hours, dollars, and what limits the first epoch and the others."""
    machines = -(-gpus // cluster.gpus)
    rate = cluster.forward if job.stored else cluster.pictures
    step = cluster.step_seconds(job.batch / rate, 0 if job.stored else job.gradients, gpus)
    computed = job.batch * gpus / step
    first = pictures / min(computed, cluster.reading(gpus))
    if job.stored:
        step = cluster.step_seconds(job.batch / (100 * rate), job.gradients, gpus)
        served = cluster.disk / job.stored * machines
        later = pictures / min(job.batch * gpus / step, served)
    else:
        later = first
    hours = (first + (EPOCHS - 1) * later) / 3600
    return {
        "hours": hours,
        "dollars": hours * gpus * cluster.price,
        "reads": float(computed > cluster.reading(gpus)),
        "network": 2 * (gpus - 1) / gpus * job.gradients,
        "storage": min(computed, cluster.reading(gpus)) * _PICTURE,
        "stored": pictures * job.stored,
    }


def measured_read() -> float:
    """Return the pictures of 500 x 375 pixels that one core decodes, resizes and crops in a second."""
    noise = np.random.default_rng(0).integers(0, 255, (47, 63, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    prepare, torch_threads = Preprocessing(), torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(60):
        begun = time.perf_counter()
        prepare.prepare(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
        times.append(time.perf_counter() - begun)
    torch.set_num_threads(torch_threads)
    return 1 / median(times)


class _Steps(Callback):
    """Keep the moments of all updates."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, run: Run) -> None:
        self.moments.append(time.perf_counter())


def _train(rank: int) -> tuple[list[float], float]:
    """Return the seconds of the updates of one thread, and of a sum of the gradients."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps, tuner = _Steps(), FineTuner("resnet18", weights=None, device="cpu").replace_head(3)
    images = torch.randn(128, 3, 96, 96), torch.arange(128) % 3
    tuner.fit(images, epochs=5, batch_size=16, callbacks=[steps], progress=False, lr=1e-3, cache=False)
    seconds = np.diff(steps.moments).tolist()
    values, times = torch.zeros(sum(p.numel() for p in tuner.model.parameters())), []
    for _ in range(5 if dist.is_initialized() else 0):
        begun = time.perf_counter()
        dist.all_reduce(values)
        times.append(time.perf_counter() - begun)
    return seconds[len(seconds) // 4 :], median(times) if times else 0.0


def check() -> dict[str, float]:
    """Return the measured and the simulated seconds of a step in two processes of one thread, and the spread."""
    alone, _ = in_processes(1, _train)[0]
    both = in_processes(2, _train)
    usual = [value for value in alone if value < 2 * median(alone)]  # not the pauses between epochs
    spread, summed = pstdev(usual) / median(usual), both[0][1]
    cluster = replace(Cluster(), spread=spread, inside=11.2e6 * 4 / max(summed, 1e-9), latency=0.0)
    simulated = cluster.step_seconds(median(alone), 11.2e6 * 4, 2)
    return {"alone": median(alone), "two": median(both[0][0]), "simulated": simulated, "spread": spread, "sum": summed}


def report(opened: float, read: float, found: dict[str, float]) -> str:
    """Return the tables as Markdown."""
    cluster = replace(Cluster(), read=read, spread=found["spread"])
    eight = 8 * cluster.pictures * (256 / cluster.pictures) / cluster.step_seconds(256 / cluster.pictures, 102.4e6, 8)
    lines = [
        "# A million and a billion pictures",
        f"Written by `python -m benchmarks.projection` on {date.today().isoformat()}: torch {version('torch')}, Python "
        f"{platform.python_version()}, {processor()}, {os.cpu_count()} cores.",
        f"A ResNet-50 at 224 pixels in batches of 256 per GPU, {EPOCHS} epochs, machines of {cluster.gpus} GPUs.",
        "| measured here | |\n| --- | ---: |\n"
        f"| opening 100,000 files, s | {opened:.1f} |\n"
        f"| pictures that a core reads, per s | {read:.0f} |\n"
        f"| spread of a step's time | {found['spread']:.1%} |\n"
        f"| step of one process, ResNet-18, one thread, ms | {1e3 * found['alone']:.0f} |\n"
        f"| sum of its gradients in two processes, ms | {1e3 * found['sum']:.0f} |\n"
        f"| step in two processes, ms | {1e3 * found['two']:.0f} |\n"
        f"| the same, simulated, ms | {1e3 * found['simulated']:.0f} |",
        "| assumed | |\n| --- | ---: |\n"
        f"| pictures per s and GPU, all layers (NVIDIA, A100, mixed precision) | {cluster.pictures:,.0f} |\n"
        f"| pictures per s and GPU, forward only | {cluster.forward:,.0f} |\n"
        f"| cores per GPU | {cluster.cores} |\n"
        f"| bytes per s between GPUs of a machine | {cluster.inside:.0e} |\n"
        f"| bytes per s between machines, per GPU | {cluster.between:.0e} |\n"
        f"| bytes per s of a machine's disk | {cluster.disk:.0e} |\n"
        f"| dollars per GPU and hour | {cluster.price:.2f} |",
        f"NVIDIA measures 16,621 pictures per second on 8 GPUs; the simulation says {eight:,.0f}.",
        "| trained | pictures | GPUs | time | dollars | limited by | from storage, GB/s | summed per step and GPU, MB "
        "| activations per machine, GB |\n| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    rows = []
    for job in JOBS:
        for pictures in PICTURES:
            for gpus in GPUS:
                row = project(job, pictures, gpus, cluster)
                limit = "reading pictures" if row["reads"] else "the GPUs"
                rows.append(
                    f"| {job.name} | {pictures:,} | {gpus} | {_duration(row['hours'])} | {row['dollars']:,.0f} "
                    f"| {limit} | {row['storage'] / 1e9:.2f} | {row['network'] / 1e6:.0f} "
                    f"| {row['stored'] / 1e9:,.0f} |"
                )
    return "\n\n".join(lines) + "\n" + "\n".join(rows) + "\n"


def _duration(hours: float) -> str:
    """Return a time in words.

    Example:
        >>> _duration(0.5), _duration(30), _duration(1000)
        ('30 min', '30 h', '42 days')
    """
    if hours < 1:
        return f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"
    return f"{hours:.0f} h" if hours < 100 else f"{hours / 24:.0f} days"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, project, and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.projection", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table (default: %(default)s)")
    options = parser.parse_args(arguments)
    with opening("files", 100_000) as measured:
        opened = measured()
    options.out.write_text(report(opened, measured_read(), check()))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
