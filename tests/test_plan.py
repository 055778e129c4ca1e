"""Plans: every phase rehearsed before any work, without a `FineTuner`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from finetune.errors import ArgumentError, CheckpointError, PatternError
from finetune.model.freezing import freeze, trainable
from finetune.model.network import Network
from finetune.model.surgery.changes import LoraAdapters
from finetune.plan import Plan, make_plan
from finetune.strategies import full_finetune, lp_ft
from finetune.training.numerics.precision import Precision
from finetune.training.optim.phases import Phase
from finetune.training.settings import Settings
from tests.helpers.models import small_cnn


def plan(network: Network, strategy: Any = None, on_error: Callable[[Any], Any] | None = None, **given: Any) -> Plan:
    options = {"epochs": 3, "lr": 1e-2, "schedule": "cosine", **given}
    return make_plan(
        network,
        strategy,
        settings=Settings(),
        precision=Precision("fp32", torch.device("cpu")),
        on_error=on_error or (lambda undo: None),
        **options,
    )


def test_without_a_strategy_there_is_one_phase_with_the_present_freeze_state() -> None:
    model = small_cnn()
    freeze(model, "0")
    made = plan(Network.of(model))

    assert made.phases == (Phase(None, 3, 1e-2, "cosine"),)
    assert made.rates.keys() == trainable(model).keys()
    assert {rate for _, rate in made.rates.values()} == {1e-2}
    assert not made.trains_all
    assert plan(Network.of(small_cnn())).trains_all


@pytest.mark.parametrize("strategy", ["lp_ft", lp_ft])
def test_a_strategy_becomes_phases_with_rates_and_a_line_each(strategy: Any) -> None:
    model = small_cnn()
    made = plan(Network.of(model), strategy)

    assert [(phase.name, phase.epochs) for phase in made.phases] == [("linear_probe", 1), ("finetune", 2)]
    assert [phase.lr for phase in made.phases] == [1e-2, pytest.approx(1e-3)]
    assert [line.split(":")[0] for line in made.lines] == ["linear_probe", "finetune"]
    assert all("trainin" in line and "lr " in line for line in made.lines)
    assert made.rates.keys() == dict(model.named_parameters()).keys()


def test_planning_leaves_the_model_as_it_was() -> None:
    model = small_cnn()
    freeze(model, ["0", "1"])
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    plan(Network.of(model), "gradual_unfreezing")

    for name, parameter in model.named_parameters():
        required, value = before[name]
        assert parameter.requires_grad is required
        assert parameter.grad is None
        assert torch.equal(parameter, value)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("strategy", "given", "error", "message"),
    [
        ("lp_fd", {}, ArgumentError, "Did you mean 'lp_ft'"),
        ([Phase("nowhere")], {}, PatternError, "nowhere"),
        ([Phase("6"), Phase("nowhere")], {}, PatternError, "nowhere"),
        ([Phase("*", start_from="missing.safetensors")], {}, CheckpointError, "missing"),
        (None, {"schedule": "cosin"}, ArgumentError, "Did you mean 'cosine'"),
        (None, {"lr": -1.0}, ArgumentError, "above 0"),
        ([Phase("*", lora_rank=2), Phase("*", lora_rank=4)], {}, ArgumentError, "adapters of rank 2"),
    ],
)
def test_a_phase_that_cannot_work_is_an_error_before_any_work(
    strategy: Any, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(3, 3))
    model.add_module("6", nn.Linear(3, 2))
    with pytest.raises(error, match=message):
        plan(Network.of(model), strategy, **given)


def test_adapters_are_added_to_the_network_and_can_be_taken_back() -> None:
    pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    names, undo = [name for name, _ in model.named_parameters()], []
    network = Network.of(model)
    made = plan(network, "lora", on_error=undo.append)

    assert network.changes == ()
    assert [type(change) for change in made.network.changes] == [LoraAdapters]
    assert any("lora" in name for name in made.rates)
    (take_back,) = undo
    take_back()
    assert [name for name, _ in model.named_parameters()] == names


def test_a_new_head_that_no_phase_trains_is_worth_a_warning() -> None:
    from finetune.checkpoint.record import record_head

    model = small_cnn()
    network = Network.of(model)
    changed = network.with_head(("6",), record_head(5, ("6",), None, model[6]))
    with pytest.warns(UserWarning, match="head '6' is frozen, so it stays random"):
        plan(changed, [Phase("0")])
    plan(changed, full_finetune)  # a warning is an error here
