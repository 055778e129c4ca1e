"""Whether storing the activations of a frozen prefix pays, and where they go: said in one line.

Two decisions. Before the prefix is sought, from what is known for nothing: to find and to prove one costs
some passes of the model, so nothing is sought where little can be had. And once it is found, from what was
measured on one batch: to fill the store once and read it in every later epoch, against loading and computing
in each. Where the activations go is decided by room alone, within a budget for all that a run stores at once:
on the device, else in the machine's memory, else in a file, if that can be read faster than computed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.caching.costs import Costs
from finetune.caching.prefix.prefix import Prefix
from finetune.data.loading.batches import Batches
from finetune.data.loading.free_memory import free_memory

DEVICE, MEMORY, DISK = "device", "memory", "disk"

# Of what is free, so much at most is taken; steps need memory on the device too.
_BUDGET_SHARES = {DEVICE: 0.4, MEMORY: 0.5, DISK: 0.9}
# To find and to prove a prefix costs about as much as to run the model on 64 samples. So much work at least has
# to be there to save: if nothing comes of it, that is 5 % of what a run of steps with two passes' work takes.
_LEAST_PASSES = 640
# The same in passes of a few samples, of which it takes 15 to 20: a small batch may take as long as a large one.
_LEAST_SMALL_PASSES = 160
# To read back what is stored takes some time of its own, in small networks about half of such a pass.
_READING = 0.5
# Bytes a second that any disk reads; most are much faster, and the system keeps in memory what it can.
_DISK_SPEED = 200e6
# What is saved has to be so much of the whole at least, as no measurement is exact.
_LEAST_GAIN = 0.05
# A prefix of less of the forward pass than this is not even measured.
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class Need:
    """What would be stored of training and validation data in a phase, and how often it would be read.

    Attributes:
        samples: how many there are.
        rows: how many inputs there are of them, one for each view of each sample.
        spared_samples: passes over samples that are stored by then, through all epochs.
        filling, reading: batches to compute and to read, through all epochs.
    """

    samples: int
    rows: int
    spared_samples: int
    filling: int
    reading: int

    @staticmethod
    def of(parts: Sequence[Batches], epochs: int) -> Need:
        """Return what so many epochs of these batches need."""
        views = [min(epochs, part.views or 1) for part in parts]
        samples = [len(part.source) for part in parts]
        sized = list(zip(samples, map(len, parts), views, strict=True))
        return Need(
            samples=sum(samples),
            rows=rows_of(parts),
            spared_samples=sum(count * (epochs - shown) for count, _, shown in sized),
            filling=sum(batches * shown for _, batches, shown in sized),
            reading=sum(batches * (epochs - shown) for _, batches, shown in sized),
        )


def rows_of(parts: Sequence[Batches]) -> int:
    """Return how many inputs there are in these batches: so many views of each sample."""
    return sum(len(batches.source) * (batches.views or 1) for batches in parts)


def not_sought(need: Need, *, asked: bool) -> str | None:
    """Say why no prefix is sought at all, None if one is; where the user asked for it, little to save will do."""
    if not need.spared_samples:
        return "no picture or sample is seen twice"
    if not asked and need.spared_samples < _LEAST_PASSES:
        return "there are too few samples and epochs for it to pay"
    return None


def too_short(costs: Costs, need: Need) -> str | None:
    """Say why no prefix is sought where what can be spared takes no time; None if one is."""
    spared = costs.load + costs.plain * costs.ahead - _READING * costs.few
    if spared * need.reading < _LEAST_SMALL_PASSES * costs.few:
        return "there is too little to compute for it to pay"
    return None


def place_for(wanted: int, device: torch.device, tiers: tuple[str, ...]) -> str | None:
    """Return the first of `tiers` with room for `wanted` bytes; None if none has."""
    if device.type == "cpu":
        tiers = tuple(tier for tier in tiers if tier != DEVICE)
    return next((tier for tier in tiers if wanted <= _BUDGET_SHARES[tier] * free(tier, device)), None)


def no_room(wanted: int, samples: int, device: torch.device, tier: str) -> str:
    """Say that so much has no room there."""
    share = {0.5: "half"}.get(_BUDGET_SHARES[tier], f"{_BUDGET_SHARES[tier]:.0%}")
    return (
        f"{readable(wanted)} for {samples:,} samples is more than {share} of the {readable(free(tier, device))} "
        f"that are free"
    )


def pays(costs: Costs, need: Need, bytes_per_sample: int, tier: str) -> bool:
    """Tell whether filling a store and reading it takes less time than doing without, by `_LEAST_GAIN` at least."""
    size = need.rows * bytes_per_sample / max(1, need.filling)  # of a batch
    stored = (size / _DISK_SPEED if tier == DISK else 0.0) + costs.served + costs.backward
    plain = costs.load + costs.plain + costs.backward
    filling = need.filling * (costs.load + costs.compute + stored)
    return filling + need.reading * stored < (need.filling + need.reading) * plain * (1 - _LEAST_GAIN)


def epoch_seconds(costs: Costs, batches: Batches) -> float:
    """Return what an epoch over these batches should take, once all of it is stored."""
    return len(batches) * (costs.served + (costs.backward if batches.shuffle else 0.0))


def said(prefix: Prefix, need: Need, place: str, there: int) -> str:
    """Say what is stored where, and how much of it is there already."""
    where = {DEVICE: "on the device", MEMORY: "in memory", DISK: "on disk"}.get(place, f"in '{place}'")
    found = f", {there:,} of them there already" if there else ""
    inputs = f"{need.rows:,} views of " * (need.rows > need.samples) + f"{need.samples:,} samples"
    return (
        f"cache: {prefix.share:.0%} of the forward pass, up to {prefix.cause}, is computed once and kept {where} "
        f"({readable(need.rows * prefix.bytes_per_sample)} for {inputs}{found})"
    )


def free(tier: str, device: torch.device) -> int:
    """Return the bytes that are free: of the device, of the machine, or of the disk for temporary files."""
    if tier == DEVICE:
        return free_memory(device)
    if tier == DISK:
        folder = Path(tempfile.gettempdir())
        return 0 if _is_in_memory(folder) else shutil.disk_usage(folder).free
    return free_memory(torch.device("cpu"))


def readable(size: float) -> str:
    """Return bytes in words."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _is_in_memory(folder: Path) -> bool:
    """Tell whether a folder's file system has no disk below it, as that of /tmp at times."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    around = {Path(mount[1]): mount[2] for mount in mounts}
    nearest = next((place for place in (folder.resolve(), *folder.resolve().parents) if place in around), None)
    return nearest is not None and around[nearest] in ("tmpfs", "ramfs")
