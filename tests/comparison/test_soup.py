"""Greedy soups of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import FineTuner, greedy_soup
from finetune.errors import ArgumentError


def net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        )


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 3, 6, 6, generator=generator) + y[:, None, None, None] / 3, y


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(4):
        tuner = FineTuner(net(0), device="cpu", seed=seed)
        tuner.fit(pictures(30, 10), epochs=1 + seed, lr=1e-2, batch_size=10)
        paths.append(tuner.save_checkpoint(tmp_path / f"{seed}.safetensors"))
    return paths


@pytest.mark.parametrize("monitor", [None, "loss", "accuracy"])
def test_a_soup_is_never_worse_than_its_best_ingredient(checkpoints: list[Path], monitor: str | None) -> None:
    val = pictures(60, 20)
    name = monitor or "accuracy"
    alone = [FineTuner.load_checkpoint(path, net(1), device="cpu").evaluate(val)[name] for path in checkpoints]

    soup = greedy_soup(checkpoints, val, model=net(2), monitor=monitor, device="cpu")

    value = soup.evaluate(val)[name]
    assert value <= min(alone) + 1e-6 if name == "loss" else value >= max(alone)


def test_a_soup_averages_different_models_and_leaves_equal_ones_unchanged(tmp_path: Path) -> None:
    """Two models with opposite errors, so that their mean is better."""
    X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    target = X @ torch.tensor([1.0, -1.0, 2.0, 0.5])
    paths = []
    for number, shift in enumerate((0.5, -0.4)):
        model = nn.Linear(4, 1)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0 + shift, -1.0, 2.0, 0.5]]))
            model.bias.zero_()
        paths.append(FineTuner(model, device="cpu", loss="mse").save_checkpoint(tmp_path / f"{number}.safetensors"))

    soup = greedy_soup(paths, (X, target), model=nn.Linear(4, 1), device="cpu")
    alone = greedy_soup([paths[1], paths[1]], (X, target), model=nn.Linear(4, 1), device="cpu")

    torch.testing.assert_close(soup.model.weight.detach()[0, 0], torch.tensor(1.05))
    torch.testing.assert_close(alone.model.weight.detach()[0, 0], torch.tensor(0.6))


def test_a_soup_needs_a_checkpoint_and_a_known_value_to_monitor(checkpoints: list[Path]) -> None:
    with pytest.raises(ArgumentError, match="at least one checkpoint"):
        greedy_soup([], pictures(6, 0))
    with pytest.raises(ArgumentError, match=r"no monitored value 'acuracy'.*loss, accuracy"):
        greedy_soup(checkpoints, pictures(6, 0), model=net(0), monitor="acuracy", device="cpu")


@pytest.mark.parametrize("mode", ["max", "min"])
def test_mode_says_which_checkpoint_a_soup_starts_from(tmp_path: Path, mode: str) -> None:
    """The averages are worse either way, so the best by `mode` is left alone."""
    X, paths = torch.ones(8, 1), []
    for number, bias in enumerate((0.0, 1.0, 3.0)):
        model = nn.Linear(1, 1)
        with torch.no_grad():
            model.weight.zero_()
            model.bias.fill_(bias)
        paths.append(FineTuner(model, device="cpu", loss="mse").save_checkpoint(tmp_path / f"{number}.safetensors"))

    def level(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    given: dict[str, Any] = {"metrics": [level], "monitor": "level", "device": "cpu"}
    soup = greedy_soup(paths, (X, X[:, 0]), model=nn.Linear(1, 1), mode=mode, **given)
    assert soup.model.bias.item() == (3.0 if mode == "max" else 0.0)
    with pytest.raises(ArgumentError, match="Pass mode='max'"):
        greedy_soup(paths, (X, X[:, 0]), model=nn.Linear(1, 1), **given)
