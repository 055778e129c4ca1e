"""Free memory, within the memory of the machine."""

from __future__ import annotations

import os

import pytest
import torch

from finetune.data.loading.free_memory import free_memory


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the machine does not say how much memory it has")
def test_free_memory_is_positive_and_less_than_all_memory() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory(torch.device("cpu")) < total


@pytest.mark.gpu
def test_free_memory_of_a_gpu() -> None:
    _, total = torch.cuda.mem_get_info()
    assert 0 < free_memory(torch.device("cuda")) <= total
