"""Strategies: pure functions from stages, epochs and rates to phases, and each of them end to end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune import FineTuner, Phase, strategies
from finetune.errors import ArgumentError
from finetune.model.stages import Stage

NAMES = ("linear_probe", "last_stage", "full_finetune", "gradual_unfreezing", "lp_ft")
FIVE = [Stage(name, (f"{name}.weight", f"{name}.bias")) for name in ("stem", "layer1", "layer2", "layer3", "fc")]


def names(*stages: str) -> tuple[str, ...]:
    return tuple(f"{stage}.{kind}" for stage in stages for kind in ("weight", "bias"))


@pytest.mark.parametrize(
    ("strategy", "epochs", "expected"),
    [
        ("linear_probe", 3, [Phase(names("fc"), 3, 0.1, name="linear_probe")]),
        ("last_stage", 3, [Phase(names("layer3", "fc"), 3, 0.1, name="last_stage")]),
        ("full_finetune", 3, [Phase("*", 3, 0.1, name="full_finetune")]),
        ("lp_ft", 5, [Phase(names("fc"), 2, 0.1, name="linear_probe"), Phase("*", 3, 5e-5, name="finetune")]),
        ("lp_ft", 1, [Phase(names("fc"), 1, 0.1, name="linear_probe")]),
        (
            "gradual_unfreezing",
            7,
            [
                Phase(names("fc"), 1, 0.1, name="gradual_unfreezing_1"),
                Phase(names("layer3", "fc"), 1, 0.1, name="gradual_unfreezing_2"),
                Phase(names("layer2", "layer3", "fc"), 2, 0.1, name="gradual_unfreezing_3"),
                Phase(names("layer1", "layer2", "layer3", "fc"), 1, 0.1, name="gradual_unfreezing_4"),
                Phase(names("stem", "layer1", "layer2", "layer3", "fc"), 2, 0.1, name="gradual_unfreezing_5"),
            ],
        ),
        (
            "gradual_unfreezing",
            3,
            [
                Phase(names("fc"), 1, 0.1, name="gradual_unfreezing_1"),
                Phase(names("layer2", "layer3", "fc"), 1, 0.1, name="gradual_unfreezing_2"),
                Phase(names("stem", "layer1", "layer2", "layer3", "fc"), 1, 0.1, name="gradual_unfreezing_3"),
            ],
        ),
        ("gradual_unfreezing", 1, [Phase(names("fc"), 1, 0.1, name="gradual_unfreezing_1")]),
    ],
)
def test_the_phases_for_five_stages(strategy: str, epochs: int, expected: list[Phase]) -> None:
    assert strategies.get_strategy(strategy)(FIVE, epochs, 0.1) == expected


@given(name=st.sampled_from(NAMES), epochs=st.integers(1, 60), count=st.integers(1, 15))
def test_epochs_sum_to_the_number_given(name: str, epochs: int, count: int) -> None:
    stages = [Stage(f"s{i}", (f"s{i}.weight",)) for i in range(count)]

    phases = strategies.get_strategy(name)(stages, epochs, None)

    assert sum(phase.epochs for phase in phases) == epochs
    assert all(phase.epochs >= 1 for phase in phases)


@given(epochs=st.integers(2, 60), count=st.integers(1, 15))
def test_gradual_unfreezing_ends_with_all_and_never_freezes_again(epochs: int, count: int) -> None:
    stages = [Stage(f"s{i}", (f"s{i}.weight",)) for i in range(count)]

    depths = [set(phase.train or ()) for phase in strategies.gradual_unfreezing(stages, epochs, None)]

    assert depths[-1] == {stage.parameters[0] for stage in stages}
    assert all(before < after for before, after in itertools.pairwise(depths))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("epochs", [0, -2, 1.5])
def test_a_number_of_epochs_that_cannot_be_is_an_error(name: str, epochs: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected epochs to be a whole number"):
        strategies.get_strategy(name)(FIVE, epochs, None)


@pytest.mark.parametrize(("typo", "meant"), [("linear_prob", "linear_probe"), ("lpft", "lp_ft")])
def test_a_misspelt_strategy_is_answered_with_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(ArgumentError, match=f"There is no strategy '{typo}'. Did you mean '{meant}'"):
        strategies.get_strategy(typo)


def test_every_strategy_has_its_name() -> None:
    assert tuple(strategies.STRATEGIES) == NAMES
    assert all(strategies.get_strategy(name) is getattr(strategies, name) for name in NAMES)


class Tiny(nn.Module):
    """Five stages with a batch norm in each but the head."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (4, 6, 6, 6, 6)
        for name, before, after in zip(("stem", "layer1", "layer2", "layer3"), sizes, sizes[1:], strict=False):
            self.add_module(name, nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer3(self.layer2(self.layer1(self.stem(x)))))


MOVED = {
    "linear_probe": {"fc"},
    "last_stage": {"layer3", "fc"},
    "full_finetune": {"stem", "layer1", "layer2", "layer3", "fc"},
    "gradual_unfreezing": {"stem", "layer1", "layer2", "layer3", "fc"},
    "lp_ft": {"stem", "layer1", "layer2", "layer3", "fc"},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lr", [None, 1e-2, (1e-3, 1e-2)])
def test_each_strategy_end_to_end(name: str, lr: Any) -> None:
    torch.manual_seed(0)
    model = Tiny()
    X, y = torch.randn(30, 4), torch.arange(30) % 3
    before = {key: value.clone() for key, value in model.state_dict().items()}

    history = FineTuner(model, device="cpu").fit((X, y), epochs=6, strategy=name, lr=lr, batch_size=10)

    moved = {key.partition(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert moved == MOVED[name]
    assert all(set(row["lr"]) for row in history)


def test_the_second_phase_of_lp_ft_trains_at_its_small_rate() -> None:
    model = Tiny()
    X, y = torch.randn(30, 4), torch.arange(30) % 3

    history = FineTuner(model, device="cpu").fit(
        (X, y), epochs=4, strategy="lp_ft", schedule=lambda progress: 1.0, lr=1e-2
    )

    assert [row["phase"] for row in history] == ["linear_probe"] * 2 + ["finetune"] * 2
    assert [set(row["lr"].values()) for row in history] == [{1e-2}, {1e-2}, {5e-5}, {5e-5}]
