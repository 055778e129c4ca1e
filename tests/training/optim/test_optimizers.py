"""Named parameter groups, and optimizers over them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune import FineTuner, Phase
from finetune.callbacks import Callback
from finetune.errors import ArgumentError
from finetune.model.stages import trainable_stages
from finetune.training.optim.optimizers import (
    OPTIMIZERS,
    NamedOptimizer,
    ParameterGroups,
    build_optimizer,
    carry_state,
    default_rate,
    held_state,
    load_state,
    parameter_groups,
    say_values,
    state_by_name,
)
from tests.helpers.models import linear_layers, with_stages

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


IDS = torch.arange(36).reshape(12, 3) % 9

RATES = st.one_of(
    st.floats(1e-6, 1.0),
    st.tuples(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0)),
    st.builds(lambda a, b: {"*": a, "head": b}, st.floats(1e-6, 1.0), st.floats(1e-6, 1.0)),
)


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
    made = build_optimizer(*with_stages(model, ("head",) if known else ()), optimizer, lr, 0.1)

    held = [parameter for group in made.param_groups for parameter in group["params"]]
    names = [name for group in made.param_groups for name in group["names"]]
    wanted = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sorted(names) == sorted(wanted)
    assert all(wanted[name] is parameter for name, parameter in zip(names, held, strict=True))
    keys = [(group["name"], group["weight_decay"]) for group in made.param_groups]
    assert len(set(keys)) == len(keys)
    assert all(group["lr"] == group["initial_lr"] > 0 for group in made.param_groups)


def test_trap_08_equal_fresh_layer_norms_both_train(blobs) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 3))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert torch.equal(model[1].weight, model[2].weight)

    optimizer = build_optimizer(*with_stages(model, ("3",)), "adamw", 1e-3, 0.0)
    FineTuner(model, device="cpu").fit(blobs(), lr=1e-2, batch_size=8)

    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == len(before)
    assert not any(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_tied_weights_are_held_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight

    optimizer = build_optimizer(*with_stages(model, ("1",)), "adamw", 1e-3, 0.0)

    names = [name for group in optimizer.param_groups for name in group["names"]]
    assert sorted(names) == ["0.bias", "0.weight", "1.bias"]


def test_trap_14_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([4, 5, 5]), nn.RMSNorm([5, 5]),
        nn.InstanceNorm2d(4, affine=True), nn.Bilinear(2, 2, 2), nn.Linear(4, 3),
    )  # fmt: skip

    groups = parameter_groups(*with_stages(model, ("7",)), 1e-3, 0.1)

    decayed = {name for group in groups for name in group["names"] if group["weight_decay"]}
    assert decayed == {"0.weight", "6.weight", "7.weight"}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def test_trap_14_a_bias_of_more_dimensions_does_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    model[0].bias = nn.Parameter(torch.zeros(1, 3))

    groups = parameter_groups(*with_stages(model, ()), 1e-3, 0.1)

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


def test_trap_09_moments_survive_a_change_of_phase(net, blobs, watch) -> None:
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
    model = linear_layers("a", "b")
    old = build_optimizer(*with_stages(model, ()), "adamw", 1e-3, 0.0)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    old.step()
    held = held_state(old, model)
    model.a.requires_grad_(False)
    new = build_optimizer(*with_stages(model, ()), "adamw", 1e-3, 0.0)

    carry_state(held, new, model)

    assert set(new.state) == set(model.b.parameters())
    assert all(new.state[parameter] is old.state[parameter] for parameter in model.b.parameters())


@pytest.mark.parametrize(
    "optimizer",
    ["adamw", "sgd", torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad, lambda g: torch.optim.SGD(g, lr=0.5)],
)
def test_state_by_name_round_trips(optimizer: Any) -> None:
    def stepped(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.arange(parameter.numel()).reshape(parameter.shape).float()
        optimizer.step()

    model, twin = linear_layers("a", "b"), linear_layers("a", "b")
    twin.load_state_dict(model.state_dict())
    first = build_optimizer(*with_stages(model, ()), optimizer, {"a": 1e-2, "b": 1e-3}, 0.1)
    stepped(first, model)
    twin.load_state_dict(model.state_dict())
    second = build_optimizer(*with_stages(twin, ()), optimizer, {"a": 1e-2, "b": 1e-3}, 0.1)
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
def test_any_torch_optimizer_trains_at_the_rates_of_the_groups(net, blobs, watch, optimizer: Any, kind: type) -> None:
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
        build_optimizer(*with_stages(linear_layers("a", "head"), ("head",)), factory, 1e-3, 0.0)


def test_trap_07_a_frozen_parameter_in_the_optimizer_is_an_error() -> None:
    model = linear_layers("a", "head")
    model.a.requires_grad_(False)

    def factory(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD([*groups, {"params": list(model.a.parameters()), "lr": 1.0}])

    with pytest.raises(ArgumentError, match=r"frozen or foreign \['a\.bias', 'a\.weight'\]"):
        build_optimizer(*with_stages(model, ("head",)), factory, 1e-3, 0.0)


def test_a_factory_should_return_an_optimizer() -> None:
    with pytest.raises(ArgumentError, match="Expected the optimizer factory to return a torch Optimizer, but got None"):
        build_optimizer(*with_stages(linear_layers("a"), ()), lambda groups: None, 1e-3, 0.0)


def test_an_unknown_optimizer_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ArgumentError, match=r"There is no optimizer 'adam'. Did you mean 'adamw'"):
        FineTuner(linear_layers("a"), device="cpu", optimizer="adam").fit(
            (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        )


def test_trap_03_nothing_trainable_is_an_error_at_fit(net, blobs, state_of, same) -> None:
    tuner = FineTuner(net(), device="cpu").freeze("*")
    before = state_of(tuner.model)

    with pytest.raises(ArgumentError, match="Nothing is trainable"):
        tuner.fit(blobs())

    assert same(before, state_of(tuner.model))
    assert len(tuner.history) == 0


def test_trap_03_a_frozen_new_head_is_a_warning(net, blobs) -> None:
    tuner = FineTuner(net(outputs=7), device="cpu").replace_head(3).freeze("6")

    with pytest.warns(UserWarning, match="head '6' is frozen"):
        tuner.fit(blobs(), batch_size=8)


def test_trainable_stages_are_groups_in_depth_order(net) -> None:
    model = net()
    model[0].requires_grad_(False)

    groups = parameter_groups(*with_stages(model, ("6",)), 1e-3, 0.1)

    assert list(dict.fromkeys(group["name"] for group in groups)) == [
        stage.name for stage in trainable_stages(*with_stages(model, ("6",)))
    ]


def test_on_a_gpu_a_fused_optimizer_resumes(net, blobs, tmp_path, watch, accelerator) -> None:
    fused = watch(lambda run: run.optimizer.defaults["fused"])
    whole = FineTuner(net(dropout=0.0), device=accelerator, precision="fp32")
    whole.fit(blobs(), epochs=2, batch_size=8, checkpoint_dir=tmp_path / "whole", callbacks=[fused])
    first = FineTuner(net(dropout=0.0), device=accelerator, precision="fp32")
    first.fit(blobs(), epochs=1, batch_size=8, checkpoint_dir=tmp_path / "first")
    again = FineTuner(net(dropout=0.0), device=accelerator, precision="fp32")

    again.fit(blobs(), epochs=2, batch_size=8, resume_from=tmp_path / "first")

    assert all(fused.seen)
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
    with pytest.raises(ArgumentError, match=r"Did you mean 'sign_sgd'.*adamw, sgd, sign_sgd, or a function"):
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
        only_watches = True

        def on_step_end(self, run: Any) -> None:
            if run.epoch == 1 and run.position.window == 2:
                run.save(tmp_path / "cut.safetensors")

    whole, resumed = (FineTuner(net(), device="cpu", optimizer="muon") for _ in range(2))
    data = {"train": blobs(), "epochs": 4, "batch_size": 8, "lr": 0.05}

    history = whole.fit(**data, callbacks=[Cut()])
    resumed.fit(**data, resume_from=tmp_path / "cut.safetensors")

    assert history[-1]["loss"] < 0.85 * history[0]["loss"]
    assert same(state_of(whole.model), state_of(resumed.model))


def flat(groups: ParameterGroups, lr: float = 0.25) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter for group in groups for parameter in group["params"]], lr=lr)


def tenfold(groups: ParameterGroups) -> torch.optim.Optimizer:
    for group in groups:
        group["lr"] *= 10  # in place
    return torch.optim.SGD(groups)


def later(groups: ParameterGroups) -> torch.optim.Optimizer:
    made = torch.optim.Adam(groups)
    made.param_groups[-1]["lr"] = 0.1
    return made


def nameless(groups: ParameterGroups) -> torch.optim.Optimizer:
    return torch.optim.SGD([{key: group[key] for key in ("params", "lr")} for group in groups])


VOID: dict[str, Callable[[ParameterGroups], torch.optim.Optimizer]] = {
    "one group": flat,
    "scaled in place": tenfold,
    "changed afterwards": later,
    "lr left out": lambda groups: torch.optim.SGD([{"params": group["params"]} for group in groups], lr=0.5),
    "lr overwritten": lambda groups: torch.optim.RMSprop([{**group, "lr": 0.5} for group in groups]),
    "names kept": lambda groups: torch.optim.Adam([{**group, "lr": 0.5, "name": "x"} for group in groups]),
}


@pytest.mark.parametrize("kind", VOID)
@pytest.mark.parametrize("lr", [1e-5, (1e-5, 1e-3), {"*": 1e-5, "head": 1e-3}], ids=["one", "pair", "patterns"])
def test_a_factory_that_makes_lr_void_is_an_error(kind: str, lr: Any) -> None:
    model, stages = with_stages(linear_layers("a", "head"), ("head",))
    with pytest.raises(ArgumentError, match=r"makes lr void for \d+ parameters"):
        build_optimizer(model, stages, VOID[kind], lr, 0.0)
    build_optimizer(model, stages, VOID[kind], None, 0.0)  # as the message advises


def test_the_rate_of_a_factory_holds_without_another(net, blobs, caplog) -> None:
    tuner = FineTuner(net(), device="cpu", optimizer=flat)
    with caplog.at_level("INFO", "finetune"):
        history = tuner.fit(blobs(), schedule="constant", progress=False)
    assert set(history[0]["lr"].values()) == {0.25}
    assert {rate for row in tuner.summary().rows for _, rate in row.groups} == {0.25}
    assert caplog.text.count("lr=0.25 from the factory") == 1
    assert "changes the weight decay" in caplog.text


def named(groups: ParameterGroups, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.5, **{"weight_decay": 0.3, **options})


@pytest.mark.parametrize(
    ("factory", "lr", "weight_decay", "expected", "said"),
    [
        (named, None, 0.01, (0.5, 0.3), ["lr=0.5 from the factory", "weight_decay=0.3 from the factory"]),
        (partial(torch.optim.AdamW, lr=0.5), None, 0.01, (0.5, 0.01), ["lr=0.5 from the factory"]),
        (named, 0.1, 0.2, (0.1, 0.2), ["lr=0.5 of the factory is replaced", "weight_decay=0.3 of the factory is"]),
        (partial(named, weight_decay=0.0), 0.1, 0.01, (0.1, 0.01), ["lr=0.5 of the factory is replaced"]),
        (
            lambda groups: torch.optim.Adam(groups, eps=1e-7),
            None,
            0.01,
            (0.01, 0.01),
            ["in place of lr=0.001"],
        ),
        (torch.optim.Adam, None, 0.01, (0.01, 0.01), []),
    ],
)
def test_the_values_of_a_factory_are_defaults(
    factory: Any, lr: Any, weight_decay: float, expected: tuple[float, float], said: list[str], caplog: Any
) -> None:
    model, stages = with_stages(linear_layers("a", "head"), ("head",))
    caplog.set_level("INFO", "finetune")
    made = build_optimizer(model, stages, factory, lr, weight_decay)
    say_values(factory, made, lr, weight_decay)
    of_head = {(group["lr"], group["weight_decay"]) for group in made.param_groups if group["name"] == "head"}
    assert of_head == {expected, (expected[0], 0.0)}
    assert len(caplog.records) == len(said)
    assert all(part in record.message for part, record in zip(said, caplog.records, strict=True))


def test_the_rate_of_a_factory_is_the_one_that_a_range_test_scales() -> None:
    assert default_rate(named, *with_stages(linear_layers("a", "head"), ("head",))) == 0.5


@pytest.mark.parametrize("factory", [flat, nameless], ids=["one group", "no names"])
def test_groups_without_names_train_at_the_rate_of_fit(net, blobs, factory: Any) -> None:
    tuner = FineTuner(net(), device="cpu", optimizer=factory, weight_decay=0.0)
    tuner.fit(blobs(), lr=0.25, progress=False)
    assert {rate for row in tuner.summary().rows for _, rate in row.groups} == {0.25}


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (torch.optim.LBFGS, "needs no closure"),
        (partial(torch.optim.LBFGS, lr=1e-3), "needs no closure"),
        (lambda groups: torch.optim.LBFGS([p for g in groups for p in g["params"]], lr=1e-3), "needs no closure"),
        (lambda groups: torch.optim.SGD(groups * 2), "factory failed"),
        (lambda: torch.optim.SGD([]), "factory failed: TypeError"),
        (lambda groups: torch.optim.SGD, "to return a torch Optimizer"),
        (lambda groups: torch.optim.SGD([]), "factory failed"),
        (torch.optim.Adam([torch.zeros(2)]), r"finished Adam.*such as torch\.optim\.Adam, without"),
    ],
)
def test_what_makes_no_optimizer_is_said(optimizer: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_optimizer(*with_stages(linear_layers("a", "head"), ("head",)), optimizer, 1e-3, 0.0)


def _of_ids(*, sparse: bool) -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(9, 4, sparse=sparse), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("sparse", "optimizer", "fix"),
    [
        (False, torch.optim.SparseAdam, "Pass another optimizer"),
        (True, torch.optim.SparseAdam, "Set sparse=False on 0"),
        (True, "adamw", "Set sparse=False on 0"),
        (True, "sgd", "Set sparse=False on 0"),
        (True, torch.optim.Adam, "Set sparse=False on 0"),
    ],
)
def test_an_optimizer_for_gradients_of_another_layout_is_an_error_before_a_step(
    state_of, same, sparse: bool, optimizer: Any, fix: str
) -> None:
    model = _of_ids(sparse=sparse)
    before = state_of(model)

    with pytest.raises(ArgumentError, match=fix):
        FineTuner(model, device="cpu", optimizer=optimizer, weight_decay=0).fit((IDS, IDS[:, 0] % 2), progress=False)

    assert same(before, state_of(model))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9)])
def test_sparse_gradients_train_with_an_optimizer_that_takes_them(optimizer: Any) -> None:
    model = _of_ids(sparse=True)
    before = model[0].weight.detach().clone()
    tuner = FineTuner(model, device="cpu", optimizer=optimizer, weight_decay=0)

    tuner.fit((IDS, IDS[:, 0] % 2), lr=0.1, progress=False)

    assert not torch.equal(before, model[0].weight)


def test_sparse_adam_trains_a_model_whose_every_gradient_is_sparse() -> None:
    model = nn.EmbeddingBag(9, 2, sparse=True)
    before = model.weight.detach().clone()
    tuner = FineTuner(model, device="cpu", optimizer=torch.optim.SparseAdam, weight_decay=0)

    tuner.fit((IDS, IDS[:, 0] % 2), epochs=2, lr=0.1, progress=False)

    assert not torch.equal(before, model.weight)


def test_a_frozen_sparse_layer_suits_every_optimizer() -> None:
    model = _of_ids(sparse=True)
    FineTuner(model, device="cpu").freeze("0").fit((IDS, IDS[:, 0] % 2), progress=False)
