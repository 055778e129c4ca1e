"""Free memory, within the memory of the machine."""

from __future__ import annotations

import os

import pytest
import torch

from finetune.devices.free_memory import free_memory


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the machine does not say how much memory it has")
def test_free_memory_is_positive_and_less_than_all_memory() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory(torch.device("cpu")) < total


def test_free_memory_of_a_gpu(accelerator: torch.device) -> None:
    _, total = torch.accelerator.get_memory_info()
    before = free_memory(accelerator)
    taken = torch.empty(100 << 20, dtype=torch.uint8, device=accelerator)
    assert 0 < free_memory(accelerator) <= before - taken.numel() < total
