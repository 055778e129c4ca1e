"""Timings taken before a prefix is cut."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from finetune.caching.timings import time_forward, timed


class Slow(nn.Module):
    """Sleeps, then scales by its own parameter."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x * self.weight


class Scaled(nn.Module):
    """Has its own parameter at the very end, as CLIP does."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(Slow(0.03), Slow(0.03), Slow(0.0))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stages(x) * self.scale
        return out


@pytest.mark.parametrize(
    ("trainable", "least", "most"),
    [
        ({"stages.0.weight"}, 0.0, 0.1),
        ({"stages.1.weight", "stages.2.weight"}, 0.3, 0.7),
        ({"stages.2.weight"}, 0.9, 1.0),
        ({"stages.0.weight", "scale"}, 1.0, 1.0),
        (set(), 1.0, 1.0),
    ],
)
def test_share_of_the_pass_before_the_first_trainable_module(trainable: set[str], least: float, most: float) -> None:
    model = Scaled()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    timings = time_forward(model, torch.ones(8, 3), load=0.5)
    assert least <= timings.frozen_share <= most
    assert timings.load == 0.5
    assert timings.forward >= 0.06
    assert 0.06 <= timings.small_forward <= timings.forward
    assert "forward" not in model.stages[0].__dict__


def test_a_timing_includes_the_work_of_the_device(accelerator: torch.device) -> None:
    x, host = torch.arange(1e6, device=accelerator), torch.zeros(1_000_000).pin_memory()
    timed(lambda: host.copy_(x, non_blocking=True), repeats=1)
    assert host.equal(torch.arange(1e6))


def test_timing_leaves_the_model_and_the_random_state_unchanged() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    before, seed = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    time_forward(model, torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), load=0.0)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(parameter.grad is None for parameter in model.parameters())
