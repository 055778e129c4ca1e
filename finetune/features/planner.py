"""Whether storing the activations of a frozen prefix pays, and where they go: said in one line."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from finetune.data.device import free_memory
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


def plan(prefix: Prefix, samples: int, epochs: int, device: torch.device, *, asked: bool) -> Plan:
    """Decide whether the prefix of `samples` samples is stored through `epochs` epochs.

    `asked` means that the user asked for it: then only memory decides.
    """
    wanted = samples * prefix.bytes_per_sample
    free = free_memory(device)
    size = f"{_readable(wanted)} for {samples:,} samples"
    if wanted > _BUDGET_SHARE * free:
        return Plan(False, f"cache: none, as {size} is more than half of the {_readable(free)} that are free")
    if not asked and prefix.share < _LEAST_SHARE:
        return Plan(False, f"cache: none, as only {prefix.share:.0%} of the forward pass comes before what trains")
    saved = samples * (epochs - 1) * prefix.share
    if not asked and saved < _COST_OF_THE_CUT:
        return Plan(False, "cache: none, as there are too few samples and epochs for it to pay")
    return Plan(
        True,
        f"cache: {prefix.share:.0%} of the forward pass, up to {prefix.cause}, is computed once and kept in memory "
        f"({size})",
    )


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
