"""Free memory of a device, or of the machine within the limit of its container."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from finetune.devices.device import has_own_memory


def free_memory(device: torch.device) -> int:
    """Return the number of free bytes on a device; for the CPU, within the limit of the container."""
    if has_own_memory(device):
        return torch.accelerator.get_memory_info(device)[0]
    return min(_free_on_machine(), _free_in_container())


def _free_on_machine() -> int:
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**20
        return int(pages * 4096 // 2)


def _free_in_container() -> int:
    """Return the bytes up to the limit of the cgroup. The page cache counts as free."""
    group = Path("/sys/fs/cgroup")
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        limit, current = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        return limit - current + int(statistics["file"]) - int(statistics.get("shmem", 0))
    except (OSError, KeyError, ValueError):  # no cgroup, or no limit ("max")
        return 1 << 62
