"""Memory is judged before it is allocated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.model.inspection.allocation import AllocationError, AllocationLimit


def test_memory_is_judged_before_it_is_allocated() -> None:
    small = torch.arange(60_000)
    with AllocationLimit(1_000_000), pytest.raises(AllocationError, match=r"28\.8 GB"):
        small[:, None] * small
    with AllocationLimit(1_000_000):
        kept = nn.Linear(100, 100)
        kept(torch.ones(2, 100))
        small.view(2, -1).zero_()
    with AllocationLimit(1_000_000), pytest.raises(AllocationError):
        nn.Sequential(*(nn.Linear(1, 1) for _ in range(1000)))
