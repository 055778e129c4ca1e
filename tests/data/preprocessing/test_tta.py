"""Test-time augmentation: outputs averaged over views of the same images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from finetune import FineTuner
from finetune.errors import ArgumentError


def net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        )


@pytest.mark.parametrize("tta", [True, [lambda x: x.flip(-1)], [lambda x: x.flip(-1), lambda x: 2 * x]])
def test_outputs_are_the_mean_over_the_views(tta: Any) -> None:
    tuner = FineTuner(net(0), device="cpu")
    X, y = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3

    views = [X, X.flip(-1), 2 * X][: 2 if tta is True else len(tta) + 1]

    expected = torch.stack([tuner.predict(view) for view in views]).mean(0)
    torch.testing.assert_close(tuner.predict(X, tta=tta, batch_size=3), expected)
    torch.testing.assert_close(tuner.predict((X, y), tta=tta), expected)
    assert torch.equal(tuner.predict(X, tta=False), tuner.predict(X))


def test_inputs_other_than_images_are_refused() -> None:
    with pytest.raises(ArgumentError, match="Test-time augmentation needs images"):
        FineTuner(nn.Linear(4, 2), device="cpu").predict(torch.randn(3, 4), tta=True)
