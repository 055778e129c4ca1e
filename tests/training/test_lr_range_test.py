"""The learning-rate range test: its suggestion, and that it leaves no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from finetune import FineTuner, LayerDecay, StepOutput
from finetune.errors import ArgumentError, PatternError
from tests.helpers.figures import cut_texts, overlapping_texts, points_under_legends


def everything(tuner: FineTuner) -> dict[str, Any]:
    """Return all state that the range test might change."""
    model = tuner.model
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "modes": [module.training for module in model.modules()],
        "frozen": [p.requires_grad for p in model.parameters()],
        "random": {"torch": torch.get_rng_state(), "rest": str((random.getstate(), np.random.get_state()))},
        "tuner": {name: str(value) for name, value in vars(tuner).items()},
    }


def loader_of(data: tuple[Tensor, Tensor]) -> DataLoader[Any]:
    dataset = TensorDataset(*data)
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(5))
    return DataLoader(dataset, 8, sampler=sampler, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("loader", [False, True])
def test_trap_21_a_later_fit_is_bit_identical(
    net, blobs, same, state_of, timeless, precision: str, optimizer: str, loader: bool
) -> None:
    def trained(find: bool) -> tuple[Any, ...]:
        torch.manual_seed(11)
        tuner = FineTuner(net(), device="cpu", precision=precision, optimizer=optimizer).freeze("0")
        data = loader_of(blobs()) if loader else blobs()
        tuner.model[6].weight.grad = torch.ones(3, 6)
        tuner.model.eval()
        before = everything(tuner)
        if find:
            tuner.find_lr(data, batch_size=8, steps=30)
            assert same(everything(tuner), before)
        history = tuner.fit(data, blobs(9), epochs=2, batch_size=8)
        return state_of(tuner.model), timeless(history), torch.rand(3)

    with_it, without = trained(True), trained(False)

    assert same(with_it[0], without[0])
    assert with_it[1] == without[1]
    assert torch.equal(with_it[2], without[2])


@pytest.mark.parametrize("failing", ["step", "pattern", "steps"])
def test_trap_21_an_error_leaves_no_trace_either(net, blobs, same, failing: str) -> None:
    class Failing(FineTuner):
        calls = 0

        def training_step(self, batch: Any) -> Any:
            self.calls += 1
            if failing == "step" and self.calls == 5:
                raise KeyError
            return super().training_step(batch)

    tuner = Failing(net(), device="cpu")
    before = everything(tuner)

    with pytest.raises((KeyError, PatternError, ArgumentError)):
        tuner.find_lr(
            blobs(), lr={"nowhere": 1.0} if failing == "pattern" else None, steps=3 if failing == "steps" else 30
        )

    assert same(everything(tuner), before)


@pytest.mark.parametrize(
    ("lr", "ratio"),
    [
        (1e-3, {"6": 1.0, "0": 1.0}),
        ((1e-5, 1e-3), {"6": 1.0, "0": 1e-2}),
        ({"*": 1e-4, "6": 1e-2}, {"6": 1.0, "*": 1e-2}),
        (LayerDecay(1e-3, decay=0.5, head=10), {"6": 1.0, "0": 0.025}),
        (None, {"6": 1.0, "0": 0.01}),
    ],
)
def test_trap_22_the_ratios_between_groups_are_preserved(net, blobs, watch, lr: Any, ratio: dict[str, float]) -> None:
    tuner = FineTuner(net(), device="cpu")

    found = tuner.find_lr(blobs(), lr=lr, batch_size=8)
    row = tuner.fit(blobs(), lr=found.lr, schedule=lambda progress: 1.0)[0]

    assert type(found.lr) is (LayerDecay if lr is None else type(lr))
    for name, share in ratio.items():
        assert row["lr"][name] == pytest.approx(share * found.suggested)


def test_the_rates_rise_exponentially_over_the_whole_range(net, blobs) -> None:
    class Level(FineTuner):
        """A loss that falls by itself, whatever the updates."""

        def training_step(self, batch: Any) -> StepOutput:
            self.calls = getattr(self, "calls", 0) + 1
            return StepOutput(self.model(batch[0]).sum() * 0 + 100.0 - self.calls)

    found = Level(net(), device="cpu").find_lr(blobs(), batch_size=8, steps=40)

    steps = np.diff(np.log10(found.rates))
    assert len(found.rates) == len(found.losses) == 40
    assert np.allclose(steps, steps[0])
    assert np.log10([found.rates[0], found.rates[-1]]) == pytest.approx([-7 + 0.1, 1 - 0.1])


@pytest.mark.parametrize(("curvature", "best"), [(1.0, 1.0), (100.0, 0.01), (10000.0, 0.0001)])
def test_the_suggestion_follows_the_curvature_of_the_loss(curvature: float, best: float) -> None:
    """Gradient descent on c/2 w^2 converges fastest at a rate of 1/c and diverges above 2/c."""

    class Bowl(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return curvature / 2 * self.model.weight.square().sum()

    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    data = torch.randn(8, 1), torch.randn(8, 1)
    tuner = Bowl(model, device="cpu", loss="mse", optimizer=torch.optim.SGD)

    found = tuner.find_lr(data, lr=1.0, steps=200)

    assert best / 30 < found.lr < 2 * best
    assert max(found.rates) < 10 or curvature == 1.0


def test_a_loss_that_never_falls_is_an_error(net, blobs) -> None:
    class Rising(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            return self.model(batch[0]).sum() * 0 + 1.0 + 0.001 * self.calls

    with pytest.raises(ArgumentError, match="The loss fell at no rate"):
        Rising(net(), device="cpu").find_lr(blobs(), steps=20)


def test_the_suggestion_trains_well_and_has_a_plot(net, blobs, tmp_path) -> None:
    tuner = FineTuner(net(dropout=0.0), device="cpu")
    found = tuner.find_lr(blobs(60), batch_size=10)

    figure = found.plot(tmp_path / "rates.png")
    history = tuner.fit(blobs(60), epochs=5, batch_size=10, lr=found.lr)

    assert (tmp_path / "rates.png").stat().st_size > 1000
    [axes] = figure.axes
    assert axes.get_xscale() == "log"
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["loss of an update"], list(zip(found.rates, found.losses, strict=True)))
    [(rate, loss)] = lines[f"suggested: {found.suggested:.2g}"]
    assert rate == found.suggested
    assert [rate, loss] in lines["smoothed"].tolist()
    assert points_under_legends(figure) == overlapping_texts(figure) == cut_texts(figure) == []
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
