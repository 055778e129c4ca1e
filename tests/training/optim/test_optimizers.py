"""Parameter groups by name, and the optimizers over them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune import FineTuner, Phase
from finetune.callbacks import Callback
from finetune.errors import ArgumentError, PatternError
from finetune.model.stages import Stage, stages, trainable_stages
from finetune.training.optim.optimizers import (
    OPTIMIZERS,
    NamedOptimizer,
    ParameterGroups,
    build_optimizer,
    carry_state,
    default_rate,
    load_state,
    parameter_groups,
    state_by_name,
)
from finetune.training.optim.rates import rates

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "no_bias": lambda: nn.Linear(4, 4, bias=False),
    "conv": lambda: nn.Conv1d(4, 4, 1),
    "batch_norm": lambda: nn.BatchNorm1d(4),
    "layer_norm": lambda: nn.LayerNorm([4, 4]),
    "attention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
    "block": lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4))),
    "relu": nn.ReLU,
}
RATES = st.one_of(
    st.floats(1e-6, 1.0),
    st.tuples(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0)),
    st.builds(lambda a, b: {"*": a, "head": b}, st.floats(1e-6, 1.0), st.floats(1e-6, 1.0)),
)


def staged(model: nn.Module, head: tuple[str, ...]) -> tuple[nn.Module, list[Stage]]:
    return model, stages(model, head)


def deep(*names: str) -> nn.Sequential:
    """Make a model with a linear layer of each name."""
    model = nn.Sequential()
    for name in names:
        model.add_module(name, nn.Linear(2, 2))
    return model


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """Draw a small model with at least one trainable parameter, and any freeze state."""
    model = nn.Sequential()
    for i, kind in enumerate(draw(st.lists(st.sampled_from(sorted(LAYERS)), max_size=6))):
        model.add_module(f"part{i}", LAYERS[kind]())
    model.add_module("head", nn.Linear(4, 3))
    if draw(st.booleans()):
        model.register_parameter("token", nn.Parameter(torch.zeros(1, 1, 4)))
    frozen = draw(st.lists(st.sampled_from([name for name, _ in model.named_parameters()][:-1]), unique=True))
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return model


@settings(deadline=None)
@given(model=models(), lr=RATES, optimizer=st.sampled_from(["adamw", "sgd", torch.optim.Adam]), known=st.booleans())
def test_trap_07_groups_partition_the_trainable_parameters(
    model: nn.Module, lr: Any, optimizer: Any, known: bool
) -> None:
    made = build_optimizer(*staged(model, ("head",) if known else ()), optimizer, lr, 0.1)

    held = [parameter for group in made.param_groups for parameter in group["params"]]
    names = [name for group in made.param_groups for name in group["names"]]
    wanted = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sorted(names) == sorted(wanted)
    assert all(wanted[name] is parameter for name, parameter in zip(names, held, strict=True))
    keys = [(group["name"], group["weight_decay"]) for group in made.param_groups]
    assert len(set(keys)) == len(keys)
    assert all(group["lr"] == group["initial_lr"] > 0 for group in made.param_groups)


def test_trap_08_equal_fresh_layer_norms_are_both_trained(blobs) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 3))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert torch.equal(model[1].weight, model[2].weight)

    optimizer = build_optimizer(*staged(model, ("3",)), "adamw", 1e-3, 0.0)
    FineTuner(model, device="cpu").fit(blobs(), lr=1e-2, batch_size=8)

    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == len(before)
    assert not any(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_tied_weights_are_held_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight

    optimizer = build_optimizer(*staged(model, ("1",)), "adamw", 1e-3, 0.0)

    names = [name for group in optimizer.param_groups for name in group["names"]]
    assert sorted(names) == ["0.bias", "0.weight", "1.bias"]


@given(low=st.floats(1e-7, 1.0), high=st.floats(1e-7, 1.0), depth=st.integers(2, 9))
def test_a_pair_is_geometric_over_the_stages_with_exact_ends(low: float, high: float, depth: int) -> None:
    model = deep(*(f"stage{i}" for i in range(depth - 1)), "head")

    spread = [rate for _, rate in dict(rates(*staged(model, ("head",)), (low, high)).values()).items()]

    assert (spread[0], spread[-1]) == (low, high)
    ratios = [after / before for before, after in itertools.pairwise(spread)]
    assert ratios == pytest.approx([(high / low) ** (1 / (depth - 1))] * (depth - 1), rel=1e-9)


def test_a_pair_spreads_over_the_stages_that_train() -> None:
    model = deep("a", "b", "c", "d", "head")
    for name in ("a", "b"):
        model.get_submodule(name).requires_grad_(False)

    spread = dict(rates(*staged(model, ("head",)), (1e-4, 1e-2)).values())

    assert spread == pytest.approx({"c": 1e-4, "d": 1e-3, "head": 1e-2})


def test_a_head_alone_gets_the_heads_rate() -> None:
    model = deep("a", "head")
    model.a.requires_grad_(False)

    assert dict(rates(*staged(model, ("head",)), (1e-4, 1e-2)).values()) == {"head": 1e-2}


def test_in_a_mapping_the_last_match_wins() -> None:
    model = deep("layer1", "layer10", "head")

    given = rates(*staged(model, ("head",)), {"*": 1e-5, "layer1": 1e-4, "*.bias": 1e-3})

    assert given == {
        "layer1.weight": ("layer1", 1e-4),
        "layer1.bias": ("*.bias", 1e-3),
        "layer10.weight": ("*", 1e-5),
        "layer10.bias": ("*.bias", 1e-3),
        "head.weight": ("*", 1e-5),
        "head.bias": ("*.bias", 1e-3),
    }


def test_what_is_frozen_needs_no_rate_in_a_mapping() -> None:
    model = deep("body", "head")
    model.body.requires_grad_(False)

    assert set(rates(*staged(model, ("head",)), {"body": 1e-4, "head": 1e-3})) == {"head.weight", "head.bias"}


def test_a_trainable_parameter_without_a_rate_is_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"no rate to 2 trainable parameters, the first 'b\.weight'"):
        rates(*staged(deep("a", "b"), ("b",)), {"a": 1e-3})


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest() -> None:
    with pytest.raises(PatternError, match=r"'heed' matches no module.*Did you mean 'head'"):
        rates(*staged(deep("body", "head"), ("head",)), {"*": 1e-4, "heed": 1e-3})


@pytest.mark.parametrize("lr", [(1e-3,), (1e-3, 1e-3, 1e-3), (), [1e-3], "1e-3", None])
def test_trap_13_rates_by_position_of_a_wrong_length_are_refused(lr: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected lr to be a number, a pair"):
        parameter_groups(*staged(deep("a", "b", "head"), ("head",)), lr, 0.0)


@pytest.mark.parametrize("rate", [0, 0.0, -1e-3, math.nan, math.inf, "fast"])
@pytest.mark.parametrize("form", [lambda r: (r, 1e-3), lambda r: (1e-3, r), lambda r: {"*": r}, lambda r: r])
def test_a_rate_that_is_not_above_zero_is_refused(rate: Any, form: Callable[[Any], Any]) -> None:
    with pytest.raises(ArgumentError, match=r"learning rate above 0|Expected lr to be a number"):
        build_optimizer(*staged(deep("a", "head"), ("head",)), "adamw", form(rate), 0.0)


def test_an_empty_mapping_is_no_default() -> None:
    with pytest.raises(ArgumentError, match="no rate to 4 trainable parameters"):
        build_optimizer(*staged(deep("a", "head"), ("head",)), "adamw", {}, 0.0)


def test_without_rates_each_optimizer_has_its_own() -> None:
    known = staged(deep("a", "b", "head"), ("head",))
    found = {name: build_optimizer(*known, name, None, 0.0) for name in ("adamw", "sgd")}
    assert [group["lr"] for group in found["adamw"].param_groups][::2] == pytest.approx([1e-4, 10**-2.5, 1e-2])
    assert [group["lr"] for group in found["sgd"].param_groups][::2] == pytest.approx([1e-3, 10**-2.5, 1e-2])
    assert default_rate(torch.optim.Adam, *known) == default_rate("adamw", *known)


@given(st.integers(1, 5000), st.integers(2, 60))
def test_without_rates_the_head_goes_by_its_features_and_the_first_stage_by_the_head(features: int, depth: int) -> None:
    body = [nn.Linear(1, 1, device="meta") for _ in range(depth)]
    known = staged(nn.Sequential(*body, nn.Linear(features, 3, device="meta")), (str(depth),))

    spread = list(dict(rates(*known, default_rate("adamw", *known)).values()).values())

    assert spread[-1] == pytest.approx(min(1e-2, max(1e-3, 1 / features)))
    assert spread[0] == pytest.approx(spread[-1] / 100)
    assert spread[-2] == pytest.approx(spread[-1] / 10**0.5, rel=0 if depth < 14 else 0.4)
    assert spread == sorted(spread)


def test_without_rates_a_transformer_of_twelve_blocks_has_the_published_decay() -> None:
    known = staged(deep("embedding", *(f"block{i}" for i in range(12)), "head"), ("head",))
    spread = list(dict(rates(*known, default_rate("adamw", *known)).values()).values())
    steps = [before / after for before, after in itertools.pairwise(spread[:-1])]
    assert steps == pytest.approx([0.75] * 12, rel=1e-3)


def test_without_rates_a_stage_has_the_same_whatever_else_trains() -> None:
    model = deep("a", "b", "c", "head")
    known = staged(model, ("head",))
    whole = rates(*known, default_rate("adamw", *known))
    for name in ("a", "b"):
        model.get_submodule(name).requires_grad_(False)
    part = rates(*known, default_rate("adamw", *known))
    assert part == {name: whole[name] for name in part}
    assert {stage for stage, _ in part.values()} == {"c", "head"}


def test_without_rates_a_head_of_convolutions_or_of_norms_alone_has_one_too() -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 200, 1), nn.Conv2d(200, 5, 1))
    norm = nn.Sequential(nn.Conv2d(3, 200, 1), nn.BatchNorm2d(200))
    for model, expected in ((convolution, 1 / 200), (norm, 1e-3)):
        known = staged(model, ("1",))
        assert dict(rates(*known, default_rate("adamw", *known)).values())["1"] == pytest.approx(expected)


def test_trap_14_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([4, 5, 5]), nn.RMSNorm([5, 5]),
        nn.InstanceNorm2d(4, affine=True), nn.Bilinear(2, 2, 2), nn.Linear(4, 3),
    )  # fmt: skip

    groups = parameter_groups(*staged(model, ("7",)), 1e-3, 0.1)

    decayed = {name for group in groups for name in group["names"] if group["weight_decay"]}
    assert decayed == {"0.weight", "6.weight", "7.weight"}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def test_trap_14_a_bias_of_more_dimensions_does_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    model[0].bias = nn.Parameter(torch.zeros(1, 3))

    groups = parameter_groups(*staged(model, ()), 1e-3, 0.1)

    assert {name for group in groups for name in group["names"] if group["weight_decay"]} == {"0.weight"}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", lambda groups: torch.optim.SGD(groups, momentum=0.9)])
def test_trap_06_frozen_weights_stay_bit_identical(net, blobs, state_of, optimizer: Any) -> None:
    model = net()
    tuner = FineTuner(model, device="cpu", optimizer=optimizer, weight_decay=0.5)
    tuner.fit(blobs(), epochs=2, lr=0.1, batch_size=8)  # moments for all of it
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    tuner.freeze(["0", "1", "4.weight"])
    before = state_of(model)

    tuner.fit(blobs(), epochs=3, lr=0.1, batch_size=8)

    after = state_of(model)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if name.startswith(("0.", "1."))} | {"4.weight"}


def test_trap_09_what_trained_already_keeps_its_moments(net, blobs, watch) -> None:
    moments = watch(lambda run: {
        name: (int(state["step"]), state["exp_avg"].clone())
        for group in run.optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for state in [run.optimizer.state[parameter]]
    })  # fmt: skip
    tuner = FineTuner(net(), device="cpu")

    tuner.fit(blobs(), strategy=[Phase("6", 2), Phase(["4", "6"], 1)], batch_size=8, callbacks=[moments])

    steps = [{name: step for name, (step, _) in seen.items()} for seen in moments.seen]
    assert steps[5] == {"6.weight": 6, "6.bias": 6}
    assert steps[6] == {"4.weight": 1, "4.bias": 1, "6.weight": 7, "6.bias": 7}


def test_carried_state_is_the_same_objects() -> None:
    model = deep("a", "b")
    old = build_optimizer(*staged(model, ()), "adamw", 1e-3, 0.0)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    old.step()
    model.a.requires_grad_(False)
    new = build_optimizer(*staged(model, ()), "adamw", 1e-3, 0.0)

    carry_state(old, new)

    assert set(new.state) == set(model.b.parameters())
    assert all(new.state[parameter] is old.state[parameter] for parameter in model.b.parameters())


@pytest.mark.parametrize(
    "optimizer",
    ["adamw", "sgd", torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad, lambda g: torch.optim.SGD(g, lr=0.5)],
)
def test_state_by_name_goes_round(optimizer: Any) -> None:
    def stepped(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.arange(parameter.numel()).reshape(parameter.shape).float()
        optimizer.step()

    model, twin = deep("a", "b"), deep("a", "b")
    twin.load_state_dict(model.state_dict())
    first = build_optimizer(*staged(model, ()), optimizer, {"a": 1e-2, "b": 1e-3}, 0.1)
    stepped(first, model)
    twin.load_state_dict(model.state_dict())
    second = build_optimizer(*staged(twin, ()), optimizer, {"a": 1e-2, "b": 1e-3}, 0.1)
    load_state(second, twin, copy.deepcopy(state_by_name(first, model)))
    assert [group["name"] for group in second.param_groups] == ["a", "a", "b", "b"]

    stepped(first, model)
    stepped(second, twin)

    for name, parameter in twin.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        (torch.optim.Adam, torch.optim.Adam),
        (torch.optim.RMSprop, torch.optim.RMSprop),
        (torch.optim.SGD, torch.optim.SGD),
        (lambda groups: torch.optim.SGD(groups, lr=5.0, nesterov=True, momentum=0.9), torch.optim.SGD),
    ],
)
def test_any_optimizer_of_torch_trains_at_the_groups_rates(net, blobs, watch, optimizer: Any, kind: type) -> None:
    seen = watch()
    tuner = FineTuner(net(dropout=0.0), device="cpu", optimizer=optimizer)

    history = tuner.fit(blobs(), epochs=3, lr=0.01, schedule=lambda p: 1.0, batch_size=8, callbacks=[seen])

    assert type(seen.run.optimizer) is kind
    assert {rate for rates in seen.rates for rate in rates.values()} == {0.01}
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize(
    "factory",
    [
        lambda groups: torch.optim.SGD(groups[1:]),
        lambda groups: torch.optim.SGD([*groups, {"params": [torch.zeros(2, requires_grad=True)], "lr": 1.0}]),
    ],
    ids=["drops one", "adds one"],
)
def test_trap_07_a_factory_that_changes_the_set_is_an_error(factory: Any) -> None:
    with pytest.raises(ArgumentError, match="does not hold exactly the trainable parameters"):
        build_optimizer(*staged(deep("a", "head"), ("head",)), factory, 1e-3, 0.0)


def test_trap_07_a_frozen_parameter_in_the_optimizer_is_an_error() -> None:
    model = deep("a", "head")
    model.a.requires_grad_(False)

    def factory(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD([*groups, {"params": list(model.a.parameters()), "lr": 1.0}])

    with pytest.raises(ArgumentError, match=r"frozen or foreign \['a\.bias', 'a\.weight'\]"):
        build_optimizer(*staged(model, ("head",)), factory, 1e-3, 0.0)


def test_a_factory_should_return_an_optimizer() -> None:
    with pytest.raises(ArgumentError, match="should return a torch Optimizer, but returned None"):
        build_optimizer(*staged(deep("a"), ()), lambda groups: None, 1e-3, 0.0)


def test_an_unknown_optimizer_is_answered_with_the_nearest() -> None:
    with pytest.raises(ArgumentError, match=r"There is no optimizer 'adam'. Did you mean 'adamw'"):
        FineTuner(deep("a"), device="cpu", optimizer="adam").fit((torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])))


def test_trap_03_nothing_trainable_is_an_error_at_fit(net, blobs, state_of, same) -> None:
    tuner = FineTuner(net(), device="cpu").freeze("*")
    before = state_of(tuner.model)

    with pytest.raises(ArgumentError, match="Nothing is trainable"):
        tuner.fit(blobs())

    assert same(before, state_of(tuner.model))
    assert len(tuner.history) == 0


def test_trap_03_a_new_head_that_is_frozen_is_warned_of(net, blobs) -> None:
    tuner = FineTuner(net(outputs=7), device="cpu").replace_head(3).freeze("6")

    with pytest.warns(UserWarning, match="head '6' is frozen"):
        tuner.fit(blobs(), batch_size=8)


def test_stages_that_train_are_groups_in_depth_order(net) -> None:
    model = net()
    model[0].requires_grad_(False)

    groups = parameter_groups(*staged(model, ("6",)), 1e-3, 0.1)

    assert list(dict.fromkeys(group["name"] for group in groups)) == [
        stage.name for stage in trainable_stages(*staged(model, ("6",)))
    ]


@pytest.mark.gpu
def test_on_cuda_a_resumed_fused_optimizer_goes_on(net, blobs, tmp_path) -> None:
    whole = FineTuner(net(dropout=0.0), device="cuda", precision="fp32")
    whole.fit(blobs(), epochs=2, batch_size=8, checkpoint_dir=tmp_path / "whole", schedule="constant")
    first = FineTuner(net(dropout=0.0), device="cuda", precision="fp32")
    first.fit(blobs(), epochs=1, batch_size=8, checkpoint_dir=tmp_path / "first")
    again = FineTuner(net(dropout=0.0), device="cuda", precision="fp32")

    again.fit(blobs(), epochs=2, batch_size=8, resume_from=tmp_path / "first")

    assert len(again.history) == 2
    assert all(parameter.isfinite().all() for parameter in again.model.parameters())


def test_momentum_carries_over_into_a_group_that_new_parameters_join(net, blobs, state_of) -> None:
    phases = [Phase("6", lr={"*": 0.1}), Phase("*", lr={"*": 0.1})]
    fused, plain = (
        FineTuner(net(), device="cpu", optimizer=optimizer, weight_decay=0.0)
        for optimizer in ("sgd", lambda groups: torch.optim.SGD(groups, momentum=0.9, foreach=False))
    )
    for tuner in (fused, plain):
        tuner.fit(blobs(), strategy=phases, batch_size=8)
    torch.testing.assert_close(state_of(fused.model), state_of(plain.model))


# ---------------------------------------------------------------------- new optimizers


class SignSGD(torch.optim.Optimizer):
    """Step by the sign of the gradient."""

    def __init__(self, groups: ParameterGroups) -> None:
        super().__init__(groups, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def test_a_new_optimizer_is_one_entry_with_its_own_default_rates(net, blobs, monkeypatch) -> None:
    rates = {"*": 1e-3, "6": 1e-2}
    monkeypatch.setitem(OPTIMIZERS, "sign_sgd", NamedOptimizer(SignSGD, default_lr=lambda model, stages: rates))
    start, tuner = net(), FineTuner(net(), device="cpu", optimizer="sign_sgd")

    history = tuner.fit(blobs(), batch_size=24, schedule=lambda progress: 1.0)

    assert history[0]["lr"] == {"*": 1e-3, "6": 1e-2}
    for name, before in start.named_parameters():
        moved = (tuner.model.get_parameter(name) - before).abs().max().item()
        assert moved == pytest.approx(1e-2 if name.startswith("6") else 1e-3, rel=1e-3)
    with pytest.raises(ArgumentError, match=r"Did you mean 'sign_sgd'.*'adamw', 'sgd', 'sign_sgd', or a function"):
        FineTuner(net(), device="cpu", optimizer="signsgd").fit(blobs())


class Muon(torch.optim.Optimizer):
    """Step by the momentum with its singular values set near to 1."""

    def __init__(self, groups: ParameterGroups) -> None:
        super().__init__(groups, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["momentum"] = state.get("momentum", torch.zeros_like(parameter)).lerp(parameter.grad, 0.05)
                update = state["momentum"] / state["momentum"].norm().clamp(min=1e-7)
                for _ in range(5):  # Newton-Schulz iterations
                    update = 1.5 * update - 0.5 * update @ update.T @ update
                parameter.sub_(update, alpha=group["lr"])


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for matrices and AdamW for everything else, as one optimizer with one state."""

    def __init__(self, groups: ParameterGroups) -> None:
        split = [
            {**group, "params": chosen, "matrices": matrices}
            for group in groups
            for matrices in (True, False)
            if (chosen := [parameter for parameter in group["params"] if (parameter.dim() == 2) == matrices])
        ]
        self.parts = {
            matrices: kind([group for group in split if group["matrices"] is matrices])
            for matrices, kind in ((True, Muon), (False, torch.optim.AdamW))
        }
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:
        for matrices, part in self.parts.items():
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["matrices"] is matrices]
            part.step()


def test_one_entry_may_step_two_optimizers(net, blobs, state_of, same, monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(OPTIMIZERS, "muon", NamedOptimizer(MuonWithAdamW))

    class Cut(Callback):
        def on_step_end(self, run: Any) -> None:
            if run.epoch == 1 and run.position.window == 2:
                run.save(tmp_path / "cut.safetensors")

    whole, resumed = (FineTuner(net(), device="cpu", optimizer="muon") for _ in range(2))
    data = {"train": blobs(), "epochs": 4, "batch_size": 8, "lr": 0.05}

    history = whole.fit(**data, callbacks=[Cut()])
    resumed.fit(**data, resume_from=tmp_path / "cut.safetensors")

    assert history[-1]["loss"] < 0.85 * history[0]["loss"]
    assert same(state_of(whole.model), state_of(resumed.model))
