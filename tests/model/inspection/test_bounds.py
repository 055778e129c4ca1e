"""Bounds of the outputs: what they can reach, and targets or losses beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune import FineTuner
from finetune.errors import HeadError
from finetune.model.inspection.bounds import Bounds

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))


class Ending(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.end = nn.Linear(4, 3), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(x))


@pytest.mark.parametrize(
    ("end", "low", "high"),
    [
        (torch.sigmoid, 0, 1), (lambda x: 500 * x.sigmoid(), 0, 500), (lambda x: 2 * x.tanh() + 1, -1, 3),
        (nn.ReLU(), 0, math.inf), (lambda x: -x.relu_(), -math.inf, 0), (lambda x: x.clamp(-2, 7), -2, 7),
        (F.softplus, 0, math.inf), (F.elu, -1, math.inf), (lambda x: 2 * x.softmax(1), 0, 2), (torch.exp, 0, math.inf),
        (lambda x: x[:, :1].sigmoid().squeeze(1), 0, 1), (lambda x: x.log_softmax(1), -math.inf, 0),
    ],
)  # fmt: skip
def test_the_range_of_what_rises_or_falls_is_found(end: Any, low: float, high: float) -> None:
    bounds = Bounds.of(Ending(end), X[:2])
    assert (bounds.low, bounds.high) == (low, high)


@pytest.mark.parametrize(
    "end",
    [
        nn.Identity(), F.silu, lambda x: x * x.sigmoid(), lambda x: x * x, lambda x: (x - 5).abs(), torch.sin,
        lambda x: F.normalize(x.relu()), lambda x: x.relu() - (-x).relu(), nn.LayerNorm(3), lambda x: x * 3,
    ],
)  # fmt: skip
def test_no_range_is_claimed_for_other_functions(end: Any) -> None:
    bounds = Bounds.of(Ending(end), X[:2])
    assert (bounds.low, bounds.high) == (-math.inf, math.inf)


def test_a_head_of_bare_parameters_has_a_range_and_the_example_is_unchanged() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.zeros(4, 1)), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            y = x @ self.w
            y += self.b
            return y.sigmoid() * 10

    example = X[:2].clone()
    assert Bounds.of(Bare(), example).high == 10
    assert torch.equal(example, X[:2])


@pytest.mark.parametrize("loss", [None, "mse", nn.L1Loss(), F.huber_loss])
@pytest.mark.parametrize(
    ("end", "targets", "said"),
    [
        (nn.Sigmoid(), ROWS.abs() * 200, "reach from 0 to 1, because its forward applies sigmoid"),
        (torch.relu, ROWS, "reach from 0 to inf, because its forward applies relu"),
        (nn.Tanh(), ROWS * 3, "reach from -1 to 1, because its forward applies tanh"),
        (lambda x: 5 * x.sigmoid(), ROWS.abs() * 20, "reach from 0 to 5, because its forward applies sigmoid"),
        (torch.exp, ROWS, "reach from 0 to inf, because its forward applies exp"),
    ],
)
def test_targets_that_outputs_cannot_reach_are_an_error_before_training(
    end: Any, targets: Tensor, said: str, loss: Any
) -> None:
    tuner = FineTuner(Ending(end), device="cpu", loss=loss)
    before = tuner.model.head.weight.clone()
    for verb in (tuner.fit, tuner.evaluate, tuner.find_lr):
        with pytest.raises(HeadError, match=said):
            verb((X, targets))
    assert torch.equal(tuner.model.head.weight, before)


@pytest.mark.parametrize(
    ("end", "loss", "targets"),
    [
        (nn.Sigmoid(), "mse", (ROWS > 0).float()),
        (nn.Sigmoid(), None, ROWS.sigmoid() * 1.001),  # rounded
        (torch.relu, None, ROWS.abs()),
        (lambda x: 500 * x.sigmoid(), None, ROWS.sigmoid() * 500),
        (torch.relu, lambda outputs, targets: (outputs - targets)[targets >= 0].square().mean(), ROWS),
        (F.silu, None, ROWS),
    ],
)
def test_targets_within_reach_are_trained_on(end: Any, loss: Any, targets: Tensor) -> None:
    FineTuner(Ending(end), device="cpu", loss=loss).fit((X, targets), progress=False)


def test_a_custom_step_knows_its_loss() -> None:
    class Own(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return (self.model(batch[0]) - batch[1].relu()).square().mean()

    Own(Ending(torch.relu), device="cpu").fit((X, ROWS), progress=False)


def hand_made_softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("end", "function"),
    [
        (lambda x: torch.maximum(x, torch.zeros_like(x)), "maximum"),
        (lambda x: x * (x > 0), "mul"),
        (lambda x: x.abs(), "abs"),
        (torch.exp, "exp"),
        (hand_made_softmax, "softmax"),
        (lambda x: (x.softmax(1) + (2 * x).softmax(1)) / 2, "softmax"),
        (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid"),
        (lambda x: (x.tanh() + 1) / 2, "sigmoid"),
        (F.softsign, "div"),
        (F.normalize, "div"),
        (lambda x: x.clamp(-9, 9), "clamp"),
    ],
)
def test_outputs_that_are_no_logits_are_known_by_their_values(end: Any, function: str) -> None:
    for verb in ("fit", "evaluate"):
        with pytest.raises(HeadError, match=f"to be logits, but its forward applies {function} to them"):
            getattr(FineTuner(Ending(end), device="cpu"), verb)((X, torch.arange(len(X)) % 3))


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x, lambda x: x + 100, lambda x: 20 * F.normalize(x), lambda x: 30 * torch.tanh(x / 30), F.silu,
        lambda x: x * x.sigmoid(), lambda x: x.log_softmax(1), lambda x: x.softmax(1).log(), nn.LayerNorm(3),
        lambda x: x - x.mean(1, keepdim=True), lambda x: x - x.exp().sum(1, keepdim=True).log(),
    ],
)  # fmt: skip
def test_logits_are_trained_on_whatever_computes_them(end: Any) -> None:
    FineTuner(Ending(end), device="cpu").fit((X, torch.arange(len(X)) % 3), progress=False)


def brier(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - F.one_hot(targets, 3)).square().mean()


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 - 2 * (outputs * targets).sum() / (outputs + targets).sum()


@pytest.mark.parametrize(
    ("end", "loss", "targets"),
    [
        (nn.Softmax(1), lambda outputs, targets: F.nll_loss(outputs.log(), targets), torch.arange(len(X)) % 3),
        (hand_made_softmax, brier, torch.arange(len(X)) % 3),
        (nn.Sigmoid(), dice, (ROWS > 0).float()),
        (
            lambda x: 1 / (1 + torch.exp(-x)),
            lambda outputs, targets: F.binary_cross_entropy(outputs.clamp(0.001, 0.999), targets),
            (ROWS > 0).float(),
        ),
    ],
)
def test_probabilities_of_the_model_are_those_of_the_metrics(
    end: Any, loss: Any, targets: Tensor, tmp_path: Path
) -> None:
    tuner = FineTuner(Ending(end), device="cpu", loss=loss, metrics=["auroc", "accuracy"])
    tuner.fit((X, targets), progress=False)
    assert tuner.task is not None
    outputs = tuner.predict(X)
    assert torch.equal(tuner.task.probabilities(outputs), outputs)
    if targets.dim() > 1:
        right = ((outputs > 0.5) == targets.bool()).float().mean().item()
        assert tuner.evaluate((X, targets))["accuracy"] == pytest.approx(right)
    tuner.save_checkpoint(tmp_path / "saved.safetensors")
    other = FineTuner.load_checkpoint(tmp_path / "saved.safetensors", model=Ending(end), loss=loss, device="cpu")
    other.evaluate((X, targets))
    assert other.task is not None
    assert other.task.outputs == "probabilities"


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x.clamp(-50, 50), lambda x: x.clamp_min(-1e4), lambda x: x.clamp_(max=1e9), nn.Hardtanh(-100, 100),
        lambda x: x.clamp(-10, 10), lambda x: x.clamp(torch.tensor(-30.0), torch.tensor(30.0)),
    ],
)  # fmt: skip
def test_clamps_wider_than_logits_are_no_bounds(end: Any) -> None:
    assert Bounds.of(Ending(end), X[:2]).clamping is None
    FineTuner(Ending(end), device="cpu").fit((X, torch.arange(12) % 3), progress=False)


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x.clamp(-0.5, 0.5), lambda x: x.clamp_min(0), lambda x: x.clamp(-50, 1), nn.Hardtanh(), nn.ReLU6(),
        lambda x: 0.01 * x.clamp(-50, 50), lambda x: x.clamp(-50, 50).sigmoid(), nn.Threshold(0.1, 20),
    ],
)  # fmt: skip
def test_other_clamps_are_bounds(end: Any) -> None:
    assert Bounds.of(Ending(end), X[:2]).clamping is not None
    with pytest.raises(HeadError, match="which holds them within bounds"):
        FineTuner(Ending(end), device="cpu").fit((X, torch.arange(12) % 3), progress=False)
