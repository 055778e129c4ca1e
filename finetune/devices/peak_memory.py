"""`PeakMemory`: the peak memory of a run."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import torch

from finetune.devices.device import has_own_memory

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # written to `clear_refs`, resets the peak resident set size (proc(5))


class PeakMemory:
    """Peak memory since construction: tensors on a GPU, otherwise the resident set of the process.

    The resident set includes the interpreter and all libraries. It is available only on Linux.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        self._known = has_own_memory(device) or (device.type == "cpu" and _reset_peak())
        if has_own_memory(device):
            torch.accelerator.reset_peak_memory_stats(device)

    def bytes(self) -> int | None:
        """Return the peak so far in bytes, or None if it is unknown."""
        if not self._known:
            return None
        return torch.accelerator.max_memory_allocated(self._device) if has_own_memory(self._device) else _process_peak()


def _reset_peak() -> bool:
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    except OSError:  # not Linux, or a container without permission
        return False
    return True


def _process_peak() -> int | None:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])
