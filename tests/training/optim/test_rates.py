"""Learning rates over the depth of a model: `LayerDecay`. Other forms are in test_optim."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune import FineTuner, LayerDecay
from finetune.callbacks import Callback
from finetune.errors import ArgumentError
from finetune.model.stages import stages
from finetune.training.optim.rates import rates


def deep(layers: int) -> tuple[nn.Sequential, tuple[str, ...]]:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers))), (str(layers - 1),)


def spread(layers: int, lr: LayerDecay) -> list[float]:
    model, head = deep(layers)
    return list(dict(rates(model, stages(model, head), lr).values()).values())


def test_each_stage_has_the_rate_of_the_next_times_the_decay() -> None:
    assert spread(4, LayerDecay(1.0, 0.5)) == [0.125, 0.25, 0.5, 1.0]
    assert spread(4, LayerDecay(1.0, 0.5, head=10)) == [0.125, 0.25, 0.5, 10.0]


@given(st.integers(2, 120), st.floats(0.3, 1.0), st.floats(1e-6, 1.0))
def test_trap_12_the_stem_learns_however_deep_the_model_is(layers: int, decay: float, lr: float) -> None:
    found = spread(layers, LayerDecay(lr, decay))
    assert found == sorted(found)
    assert found[-1] == lr
    assert found[0] == pytest.approx(lr * decay ** min(13, layers - 1))


def test_what_is_frozen_does_not_move_the_rates_of_the_rest() -> None:
    model, head = deep(6)
    whole = rates(model, stages(model, head), LayerDecay(1e-3, 0.5))
    FineTuner(model).freeze(["0", "1", "3"])
    part = rates(model, stages(model, head), LayerDecay(1e-3, 0.5))
    assert part == {name: rate for name, rate in whole.items() if name.split(".")[0] in "245"}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "one_cycle", lambda progress: 1 - progress])
def test_trap_11_the_decay_stands_in_the_groups_whatever_the_schedule(schedule: object) -> None:
    model, _ = deep(4)
    tuner = FineTuner(model, optimizer=torch.optim.SGD, device="cpu")
    seen: list[dict[str, float]] = []

    class Watch(Callback):
        def on_step_end(self, run: Any) -> None:
            seen.append(run.rates())

    data = torch.randn(12, 2), torch.arange(12) % 2
    tuner.fit(data, batch_size=4, lr=LayerDecay(1e-2, 0.5), schedule=schedule, callbacks=[Watch()], progress=False)
    assert len(seen) == 3
    for row in seen:
        assert [row[str(i)] / row["3"] for i in range(4)] == pytest.approx([0.125, 0.25, 0.5, 1.0])


@pytest.mark.parametrize("arguments", [(0,), (-1e-3,), ("x",), (1e-3, 0), (1e-3, 1.1), (1e-3, 0.5, 0)])
def test_values_out_of_range_are_an_error(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ArgumentError, match="Expected"):
        LayerDecay(*arguments)
