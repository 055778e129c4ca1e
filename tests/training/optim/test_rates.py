"""Learning rates per parameter: numbers, pairs, mappings, `LayerDecay` and the defaults."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune import FineTuner, LayerDecay
from finetune.callbacks import Callback
from finetune.errors import ArgumentError, PatternError
from finetune.model.stages import stages
from finetune.training.optim.optimizers import build_optimizer, default_rate, parameter_groups
from finetune.training.optim.rates import rates
from tests.helpers.models import linear_layers, with_stages


@given(low=st.floats(1e-7, 1.0), high=st.floats(1e-7, 1.0), depth=st.integers(2, 9))
def test_a_pair_is_geometric_over_the_stages_with_exact_ends(low: float, high: float, depth: int) -> None:
    model = linear_layers(*(f"stage{i}" for i in range(depth - 1)), "head")

    spread = [rate for _, rate in dict(rates(*with_stages(model, ("head",)), (low, high)).values()).items()]

    assert (spread[0], spread[-1]) == (low, high)
    ratios = [after / before for before, after in itertools.pairwise(spread)]
    assert ratios == pytest.approx([(high / low) ** (1 / (depth - 1))] * (depth - 1), rel=1e-9)


def test_a_pair_spreads_over_the_stages_that_train() -> None:
    model = linear_layers("a", "b", "c", "d", "head")
    for name in ("a", "b"):
        model.get_submodule(name).requires_grad_(False)

    spread = dict(rates(*with_stages(model, ("head",)), (1e-4, 1e-2)).values())

    assert spread == pytest.approx({"c": 1e-4, "d": 1e-3, "head": 1e-2})


def test_a_head_alone_gets_the_heads_rate() -> None:
    model = linear_layers("a", "head")
    model.a.requires_grad_(False)

    assert dict(rates(*with_stages(model, ("head",)), (1e-4, 1e-2)).values()) == {"head": 1e-2}


def test_in_a_mapping_the_last_match_wins() -> None:
    model = linear_layers("layer1", "layer10", "head")

    given = rates(*with_stages(model, ("head",)), {"*": 1e-5, "layer1": 1e-4, "*.bias": 1e-3})

    assert given == {
        "layer1.weight": ("layer1", 1e-4),
        "layer1.bias": ("*.bias", 1e-3),
        "layer10.weight": ("*", 1e-5),
        "layer10.bias": ("*.bias", 1e-3),
        "head.weight": ("*", 1e-5),
        "head.bias": ("*.bias", 1e-3),
    }


def test_frozen_parameters_need_no_rate_in_a_mapping() -> None:
    model = linear_layers("body", "head")
    model.body.requires_grad_(False)

    assert set(rates(*with_stages(model, ("head",)), {"body": 1e-4, "head": 1e-3})) == {"head.weight", "head.bias"}


def test_a_trainable_parameter_without_a_rate_is_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"no rate for 2 trainable parameters, the first is 'b\.weight'"):
        rates(*with_stages(linear_layers("a", "b"), ("b",)), {"a": 1e-3})


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest() -> None:
    with pytest.raises(PatternError, match=r"'heed' matches no module.*Did you mean 'head'"):
        rates(*with_stages(linear_layers("body", "head"), ("head",)), {"*": 1e-4, "heed": 1e-3})


@pytest.mark.parametrize("lr", [(1e-3,), (1e-3, 1e-3, 1e-3), (), [1e-3], "1e-3", None])
def test_trap_13_sequences_of_any_length_but_two_are_an_error(lr: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected lr to be a number, a pair"):
        parameter_groups(*with_stages(linear_layers("a", "b", "head"), ("head",)), lr, 0.0)


@pytest.mark.parametrize("rate", [0, 0.0, -1e-3, math.nan, math.inf, "fast"])
@pytest.mark.parametrize("form", [lambda r: (r, 1e-3), lambda r: (1e-3, r), lambda r: {"*": r}, lambda r: r])
def test_a_rate_that_is_not_positive_is_an_error(rate: Any, form: Callable[[Any], Any]) -> None:
    with pytest.raises(ArgumentError, match=r"Expected .* to be a number"):
        build_optimizer(*with_stages(linear_layers("a", "head"), ("head",)), "adamw", form(rate), 0.0)


def test_an_empty_mapping_does_not_mean_the_defaults() -> None:
    with pytest.raises(ArgumentError, match="no rate for 4 trainable parameters"):
        build_optimizer(*with_stages(linear_layers("a", "head"), ("head",)), "adamw", {}, 0.0)


def test_each_optimizer_has_its_own_default_rates() -> None:
    known = with_stages(linear_layers("a", "b", "head"), ("head",))
    found = {name: build_optimizer(*known, name, None, 0.0) for name in ("adamw", "sgd")}
    assert [group["lr"] for group in found["adamw"].param_groups][::2] == pytest.approx([1e-4, 10**-2.5, 1e-2])
    assert [group["lr"] for group in found["sgd"].param_groups][::2] == pytest.approx([1e-3, 10**-2.5, 1e-2])
    assert default_rate(torch.optim.Adam, *known) == default_rate("adamw", *known)


@given(st.integers(1, 5000), st.integers(2, 60))
def test_the_default_rates_of_head_and_stem_follow_the_number_of_features(features: int, depth: int) -> None:
    body = [nn.Linear(1, 1, device="meta") for _ in range(depth)]
    known = with_stages(nn.Sequential(*body, nn.Linear(features, 3, device="meta")), (str(depth),))

    spread = list(dict(rates(*known, default_rate("adamw", *known)).values()).values())

    assert spread[-1] == pytest.approx(min(1e-2, max(1e-3, 1 / features)))
    assert spread[0] == pytest.approx(spread[-1] / 100)
    assert spread[-2] == pytest.approx(spread[-1] / 10**0.5, rel=0 if depth < 14 else 0.4)
    assert spread == sorted(spread)


def test_the_default_decay_of_a_transformer_of_12_blocks_is_the_published_one() -> None:
    known = with_stages(linear_layers("embedding", *(f"block{i}" for i in range(12)), "head"), ("head",))
    spread = list(dict(rates(*known, default_rate("adamw", *known)).values()).values())
    steps = [before / after for before, after in itertools.pairwise(spread[:-1])]
    assert steps == pytest.approx([0.75] * 12, rel=1e-3)


def test_the_default_rate_of_a_stage_does_not_depend_on_the_freeze_state() -> None:
    model = linear_layers("a", "b", "c", "head")
    known = with_stages(model, ("head",))
    whole = rates(*known, default_rate("adamw", *known))
    for name in ("a", "b"):
        model.get_submodule(name).requires_grad_(False)
    part = rates(*known, default_rate("adamw", *known))
    assert part == {name: whole[name] for name in part}
    assert {stage for stage, _ in part.values()} == {"c", "head"}


def test_heads_of_convolutions_or_only_norms_have_a_default_rate() -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 200, 1), nn.Conv2d(200, 5, 1))
    norm = nn.Sequential(nn.Conv2d(3, 200, 1), nn.BatchNorm2d(200))
    for model, expected in ((convolution, 1 / 200), (norm, 1e-3)):
        known = with_stages(model, ("1",))
        assert dict(rates(*known, default_rate("adamw", *known)).values())["1"] == pytest.approx(expected)


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


def test_freezing_does_not_change_the_other_rates() -> None:
    model, head = deep(6)
    whole = rates(model, stages(model, head), LayerDecay(1e-3, 0.5))
    FineTuner(model).freeze(["0", "1", "3"])
    part = rates(model, stages(model, head), LayerDecay(1e-3, 0.5))
    assert part == {name: rate for name, rate in whole.items() if name.split(".")[0] in "245"}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "one_cycle", lambda progress: 1 - progress])
def test_trap_11_every_schedule_keeps_the_decay_between_groups(schedule: object) -> None:
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
