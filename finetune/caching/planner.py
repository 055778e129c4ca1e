"""Decide whether caching a frozen prefix pays, and where its activations go.

There are two decisions. The first, before the prefix is cut, uses cheap estimates: finding and verifying a prefix costs
several passes of the model, so it is not cut if there is little to save. The second uses timings of one batch: filling
the store once and reading it in every later epoch is compared with loading and computing in each. Activations go to the
first tier with room, within a budget for everything that a run stores at once: the device, then memory, then a file if
reading it is faster than computing.
"""

from __future__ import annotations

import operator
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.caching.declined import Declined
from finetune.caching.prefix.prefix import Prefix
from finetune.caching.timings import Timings
from finetune.data.loading.batches import Batches
from finetune.devices.free_memory import free_memory

DEVICE, MEMORY, DISK = "device", "memory", "disk"

# Share of the free bytes to use per tier. Training steps need device memory too.
_BUDGET_SHARES = {DEVICE: 0.4, MEMORY: 0.5, DISK: 0.9}
# Minimum number of forward passes of single samples to save before a prefix is cut. Cutting costs about 64 of them,
# which wastes 5 % of a run whose steps take as long as two passes if the cache is not used.
_MIN_SAMPLES = 640
# The same in passes of a few samples, because a small batch may take as long as a large one. Cutting costs 15 to 20.
_MIN_SMALL_PASSES = 160
# Minimum share of the time to save, because measurements are inexact.
_MIN_GAIN = 0.05
# Minimum share of the forward pass for a prefix to be timed.
MIN_SHARE = 0.05
# Cost of reading stored activations, in passes of a few samples. In small networks it is half of one.
_READING = 0.5
# Bytes per second that any disk reads. Most are much faster, and the system caches files in free memory.
_DISK_SPEED = 200e6


def free_bytes(tier: str, device: torch.device) -> int:
    """Return the free bytes of the device, of the host's memory, or of the disk for temporary files."""
    if tier == DEVICE:
        return free_memory(device)
    if tier == DISK:
        folder = Path(tempfile.gettempdir())
        return 0 if _is_in_memory(folder) else shutil.disk_usage(folder).free
    return free_memory(torch.device("cpu"))


@dataclass(frozen=True)
class Workload:
    """Number of activations to store in a phase, and of batches to write and read.

    Attributes:
        samples: Number of samples.
        rows: Number of inputs: one per view of each sample.
        spared_samples: Number of forward passes of single samples that stored activations replace, over all epochs.
        filling: Number of batches to compute and store, over all epochs.
        reading: Number of batches to read, over all epochs.
    """

    samples: int
    rows: int
    spared_samples: int
    filling: int
    reading: int

    @staticmethod
    def of(parts: Sequence[Batches], epochs: int) -> Workload:
        """Return the workload of some batches, such as training and validation data, over `epochs` epochs.

        Args:
            parts: The batches.
            epochs: Number of epochs.
        """
        views = [part.views or 1 for part in parts]
        samples = [len(part.source) for part in parts]
        shown = [min(epochs, each) for each in views]
        sized = list(zip(samples, map(len, parts), shown, strict=True))
        return Workload(
            samples=sum(samples),
            rows=sum(map(operator.mul, samples, views)),
            spared_samples=sum(count * (epochs - shown) for count, _, shown in sized),
            filling=sum(batches * shown for _, batches, shown in sized),
            reading=sum(batches * (epochs - shown) for _, batches, shown in sized),
        )


def num_rows(parts: Sequence[Batches]) -> int:
    """Return the number of inputs in these batches: the views of each sample times the samples."""
    return sum(len(batches.source) * (batches.views or 1) for batches in parts)


def too_few_samples(workload: Workload, *, requested: bool) -> Declined | None:
    """Decline to cut a prefix if it would save too few passes.

    Args:
        workload: The phase's workload.
        requested: Whether the user requested a cache, in which case saving one pass is enough.
    """
    if not workload.spared_samples:
        return Declined("no sample is seen twice")
    if not requested and workload.spared_samples < _MIN_SAMPLES:
        return Declined("there are too few samples and epochs for caching to pay")
    return None


def too_little_time(timings: Timings, workload: Workload) -> Declined | None:
    """Decline to cut a prefix if the saved passes take too little time."""
    spared = timings.load + timings.forward * timings.frozen_share - _READING * timings.small_forward
    if spared * workload.reading < _MIN_SMALL_PASSES * timings.small_forward:
        return Declined("there is too little to compute for caching to pay")
    return None


def choose_tier(
    wanted: int,
    device: torch.device,
    tiers: tuple[str, ...],
    *,
    free: Callable[[str, torch.device], int] = free_bytes,
) -> str | None:
    """Return the first of `tiers` with room for `wanted` bytes, or None.

    Args:
        wanted: Bytes to store.
        device: Device of the model.
        tiers: Tiers in order of preference.
        free: Function that returns the free bytes of a tier.
    """
    if device.type == "cpu":
        tiers = tuple(tier for tier in tiers if tier != DEVICE)
    return next((tier for tier in tiers if wanted <= _BUDGET_SHARES[tier] * free(tier, device)), None)


def no_room(wanted: int, samples: int, device: torch.device, tier: str) -> Declined:
    """Return the reason that `wanted` bytes exceed the budget of a tier."""
    share = {0.5: "half"}.get(_BUDGET_SHARES[tier], f"{_BUDGET_SHARES[tier]:.0%}")
    free = format_bytes(free_bytes(tier, device))
    return Declined(f"{format_bytes(wanted)} for {samples:,} samples is more than {share} of the {free} that are free")


def pays(timings: Timings, workload: Workload, bytes_per_row: int, tier: str) -> bool:
    """Return whether filling and reading a store saves enough time."""
    size = workload.rows * bytes_per_row / max(1, workload.filling)  # per batch
    stored = (size / _DISK_SPEED if tier == DISK else 0.0) + timings.replay + timings.backward
    plain = timings.load + timings.forward + timings.backward
    filling = workload.filling * (timings.load + timings.prefix + stored)
    return filling + workload.reading * stored < (workload.filling + workload.reading) * plain * (1 - _MIN_GAIN)


def epoch_seconds(timings: Timings, batches: Batches) -> float:
    """Return the estimated duration of an epoch over these batches once everything is stored."""
    return len(batches) * (timings.replay + (timings.backward if batches.shuffle else 0.0))


def describe(prefix: Prefix, workload: Workload, place: str, found: int) -> str:
    """Describe the cache for the user: its share of the forward pass, place and size, and the rows found there."""
    where = {DEVICE: "on the device", MEMORY: "in memory", DISK: "on disk"}.get(place, f"in '{place}'")
    inputs = f"{workload.rows:,} views of " * (workload.rows > workload.samples) + f"{workload.samples:,} samples"
    size = format_bytes(workload.rows * prefix.bytes_per_sample)
    return (
        f"cache: {prefix.share:.0%} of the forward pass, up to {prefix.cause}, is computed once and kept {where} "
        f"({size} for {inputs}{f', {found:,} of them already there' if found else ''})"
    )


def format_bytes(size: float) -> str:
    """Return a number of bytes as text.

    Example:
        >>> format_bytes(2.5e9)
        '2.5 GB'
    """
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _is_in_memory(folder: Path) -> bool:
    """Return whether a folder's file system is in memory, as /tmp sometimes is."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    around = {Path(mount[1]): mount[2] for mount in mounts}
    nearest = next((place for place in (folder.resolve(), *folder.resolve().parents) if place in around), None)
    return nearest is not None and around[nearest] in ("tmpfs", "ramfs")
