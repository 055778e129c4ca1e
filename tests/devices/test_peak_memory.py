"""Peak memory of a process and of a GPU."""

from __future__ import annotations

import pytest
import torch

from finetune.devices.peak_memory import PeakMemory


def test_the_peak_of_a_process_counts_from_construction() -> None:
    first = PeakMemory(torch.device("cpu"))
    before = first.bytes()
    if before is None:
        pytest.skip("the peak memory of a process is unknown on this system")
    taken = torch.ones(100 << 18)  # 100 MB
    del taken
    peak = first.bytes()
    later = PeakMemory(torch.device("cpu")).bytes()
    assert peak is not None
    assert later is not None
    assert peak - before > 90 << 20
    assert peak - later > 90 << 20


def test_the_peak_of_a_device_counts_its_tensors(accelerator: torch.device) -> None:
    torch.ones(200 << 18, device=accelerator)  # before
    before = torch.accelerator.memory_allocated(accelerator)
    memory = PeakMemory(accelerator)
    taken = torch.ones(100 << 18, device=accelerator)
    del taken
    peak = memory.bytes()
    assert peak is not None
    assert 100 << 20 <= peak - before < 110 << 20
