"""Schedules: pure functions of progress."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune import FineTuner, Phase
from finetune.errors import ArgumentError
from finetune.training.optim.schedules import get_schedule

NAMES = ("constant", "linear", "cosine", "one_cycle")


@pytest.mark.parametrize(
    ("name", "start", "middle", "end"),
    [
        ("constant", 0.0, 1.0, 1.0),
        ("linear", 0.0, 0.5 / 0.95, 0.0),
        ("cosine", 0.0, (1 + math.cos(math.pi * 0.45 / 0.95)) / 2, 0.0),
        ("one_cycle", 0.04, (1 + math.cos(math.pi * 0.2 / 0.7)) / 2, 0.0),
    ],
)
def test_golden_values(name: str, start: float, middle: float, end: float) -> None:
    schedule = get_schedule(name)

    assert [schedule(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([start, middle, end], abs=1e-12)


@given(name=st.sampled_from(NAMES), progress=st.floats(0, 1))
def test_factors_are_between_0_and_1(name: str, progress: float) -> None:
    assert 0 <= get_schedule(name)(progress) <= 1


@given(name=st.sampled_from(NAMES), a=st.floats(0, 1), b=st.floats(0, 1))
def test_factors_never_rise_after_the_warmup(name: str, a: float, b: float) -> None:
    schedule, top = get_schedule(name), 0.3 if name == "one_cycle" else 0.05
    early, late = sorted((a, b))

    if late <= top:
        assert schedule(early) <= schedule(late) + 1e-12
    if early >= top:
        assert schedule(early) >= schedule(late) - 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_the_full_rate_is_reached(name: str) -> None:
    top = 0.3 if name == "one_cycle" else 0.05

    assert get_schedule(name)(top) == pytest.approx(1.0)


def test_a_custom_function_is_returned_unchanged() -> None:
    def steps(progress: float) -> float:
        return 1.0 if progress < 0.5 else 0.1

    assert get_schedule(steps) is steps


@pytest.mark.parametrize("typo", ["cosin", "Cosine", "consine"])
def test_an_unknown_name_is_an_error_with_the_nearest_name(typo: str) -> None:
    with pytest.raises(ArgumentError, match="Did you mean 'cosine'"):
        get_schedule(typo)


@pytest.mark.parametrize(
    "bad", [lambda p: math.nan, lambda p: math.inf, lambda p: -1, lambda p: 0.4 - p, lambda p: None, lambda p: "1"]
)
def test_a_function_without_finite_numbers_is_an_error(bad: object) -> None:
    with pytest.raises(ArgumentError, match="finite factor"):
        get_schedule(bad)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        3,
        ["cosine"],
        torch.optim.lr_scheduler.CosineAnnealingLR,
        torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], 0.1), 3),
        lambda step, total: 1.0,
        lambda: 1.0,
    ],
)
def test_neither_a_name_nor_a_function_is_an_error(bad: object) -> None:
    with pytest.raises(ArgumentError, match="name or a function of progress"):
        get_schedule(bad)


def test_trap_10_a_group_added_later_follows_the_schedule(net, blobs, watch) -> None:
    seen = watch()
    tuner = FineTuner(net(), device="cpu")
    phases = [Phase("6", 1, 1e-2, "linear"), Phase(["4", "6"], 2, {"4": 1e-3, "6": 1e-2}, lambda p: 1 - p / 2)]

    tuner.fit(blobs(), strategy=phases, batch_size=8, callbacks=[seen])

    first = [get_schedule("linear")((step + 0.5) / 3) for step in range(3)]
    second = [1 - (step + 0.5) / 6 / 2 for step in range(6)]
    assert seen.rates == [
        *({"6": 1e-2 * factor} for factor in first),
        *({"4": 1e-3 * factor, "6": 1e-2 * factor} for factor in second),
    ]


def test_the_history_holds_the_rates_of_each_epochs_last_update(net, blobs, watch) -> None:
    seen = watch()

    history = FineTuner(net(), device="cpu").fit(blobs(), epochs=2, lr=(1e-4, 1e-3), batch_size=8, callbacks=[seen])

    assert [row["lr"] for row in history] == [seen.rates[2], seen.rates[5]]
    assert [row["lr_start"] for row in history] == [seen.rates[0], seen.rates[3]]
