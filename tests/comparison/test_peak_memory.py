"""Peak memory of a process and of a CUDA device."""

from __future__ import annotations

import pytest
import torch

from finetune.comparison.peak_memory import PeakMemory


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


@pytest.mark.gpu
def test_the_peak_of_a_device_counts_its_tensors() -> None:
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated(device)
    memory = PeakMemory(device)
    taken = torch.ones(100 << 18, device=device)
    del taken
    peak = memory.bytes()
    assert peak is not None
    assert 100 << 20 <= peak - before < 110 << 20
