"""How much memory a run takes at its peak."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # what `clear_refs` takes for "forget the peak of the resident set" (proc(5))


class PeakMemory:
    """The peak of memory from now on: of a CUDA device what torch's tensors take, else what the process takes.

    That of the process is its resident set, the interpreter and all libraries included; Linux tells it, and
    elsewhere it is not known.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        self._known = device.type == "cuda" or (device.type == "cpu" and _forget_peak())
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> int | None:
        """Return the peak so far in bytes, None where it is not known."""
        if not self._known:
            return None
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _peak_of_process()


def _forget_peak() -> bool:
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    except OSError:  # no Linux, or a container that does not allow it
        return False
    return True


def _peak_of_process() -> int | None:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])
