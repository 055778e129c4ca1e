"""Whether storing the activations of a frozen prefix pays, and where they go: said in one line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.features.prefix import Prefix

# Of the memory that is free, so much at most is taken without being asked.
_BUDGET_SHARE = 0.5
# To cut and prove a prefix costs about as much as so many samples; less work than that is not worth it.
_COST_OF_THE_CUT = 64
# What is left out has to be so much of the forward pass at least, or reading it back costs as much.
_LEAST_SHARE = 0.05


@dataclass(frozen=True)
class Plan:
    """Whether activations are stored, and the line that says so to the user."""

    stores: bool
    line: str


def plan(prefix: Prefix, samples: int, epochs: int, device: torch.device, *, asked: bool, views: int = 1) -> Plan:
    """Decide whether the prefix of `samples` samples, each in `views` views, is stored through `epochs` epochs.

    `asked` means that the user asked for it: then only memory decides.
    """
    wanted = samples * views * prefix.bytes_per_sample
    free = free_memory(device)
    size = f"{_readable(wanted)} for {samples:,} samples{f' in {views} views' if views > 1 else ''}"
    if wanted > _BUDGET_SHARE * free:
        return Plan(False, f"cache: none, as {size} is more than half of the {_readable(free)} that are free")
    if not asked and prefix.share < _LEAST_SHARE:
        return Plan(False, f"cache: none, as only {prefix.share:.0%} of the forward pass comes before what trains")
    saved = samples * (epochs - views) * prefix.share
    if not asked and saved < _COST_OF_THE_CUT:
        return Plan(False, "cache: none, as there are too few samples and epochs for it to pay")
    return Plan(
        True,
        f"cache: {prefix.share:.0%} of the forward pass, up to {prefix.cause}, is computed once and kept in memory "
        f"({size})",
    )


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free: of the device, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**20
        return int(pages * 4096 // 2)


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
