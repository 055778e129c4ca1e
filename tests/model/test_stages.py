"""Dividing a model into stages; see tests/model/families for those of published models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune.model.freezing import freeze, set_frozen
from finetune.model.inspection.forward_graph import reading_order
from finetune.model.patterns import select
from finetune.model.stages import Stage, stages, trainable_stages
from tests.helpers.models import TiedLanguageModel, TokenTransformer, TwoHeads, small_cnn, trees


def names(model: nn.Module, *head: str) -> list[str]:
    return [stage.name for stage in stages(model, head)]


@given(trees(), st.data())
def test_every_parameter_is_in_exactly_one_stage_and_the_head_is_last(model: nn.Module, data: st.DataObject) -> None:
    owners = sorted({name.rpartition(".")[0] for name, _ in model.named_parameters()} - {""})
    head = tuple(data.draw(st.lists(st.sampled_from(owners), max_size=2, unique=True))) if owners else ()
    found = stages(model, head)
    listed = [name for stage in found for name in stage.parameters]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert len({stage.name for stage in found}) == len(found)
    assert all(stage.parameters for stage in found)
    inside = {name for name in listed if any(f"{name}.".startswith(f"{part}.") for part in head)}
    if head:
        assert set(found[-1].parameters) == inside
        assert found[-1].name == head[0]


@given(trees())
def test_the_name_of_a_stage_matches_some_of_its_parameters(model: nn.Module) -> None:
    for stage in stages(model):
        if stage.name:
            assert set(select(model, stage.name)) & set(stage.parameters)


@given(trees(), st.data())
def test_trainable_stages_have_the_trainable_parameters(model: nn.Module, data: st.DataObject) -> None:
    parameters = list(dict(model.named_parameters()))
    assume(parameters)
    frozen = data.draw(st.sets(st.sampled_from(parameters)))
    set_frozen(model, frozen)
    found = trainable_stages(model, stages(model))
    assert {name for stage in found for name in stage.parameters} == set(parameters) - frozen
    order = [stage.name for stage in stages(model)]
    assert [stage.name for stage in found] == [name for name in order if name in {stage.name for stage in found}]


def test_small_models() -> None:
    assert names(small_cnn(), "6") == ["0", "6"]  # the norm belongs to the convolution before it
    assert names(TwoHeads(), "first", "second") == ["backbone.0", "first"]
    assert names(TokenTransformer(), "head") == ["embed", "blocks.0", "blocks.1", "head"]
    assert names(TiedLanguageModel(), "out") == ["embed", "mix", "out"]
    assert names(nn.Linear(2, 2)) == [""]
    assert names(nn.ReLU()) == []


def test_bare_parameters_and_norms_join_the_stage_before_them_or_the_first() -> None:
    found = {stage.name: stage.parameters for stage in stages(TokenTransformer(), ("head",))}
    assert found["embed"] == ("cls", "position", "embed.weight", "embed.bias")
    assert found["blocks.1"][-2:] == ("norm.weight", "norm.bias")
    assert found["head"] == ("head.weight", "head.bias")


def test_a_model_of_bare_parameters_and_norms_is_one_stage() -> None:
    """The search for the largest container to open once never ended here."""
    model = nn.Module()
    model.scale = nn.LayerNorm(2).weight
    model.norm = nn.LayerNorm(2)
    assert stages(model) == [Stage("", ("scale", "norm.weight", "norm.bias"))]
    model.head = nn.Linear(2, 2)
    assert [stage.parameters for stage in stages(model, ("head",))][1] == ("head.weight", "head.bias")


def test_large_containers_are_opened_until_no_stage_dominates() -> None:
    deep = nn.Sequential(nn.Linear(1, 1), nn.Sequential(*(nn.Linear(1, 1) for _ in range(9))), nn.Linear(1, 1))
    assert names(deep, "2") == ["0", *(f"1.{i}" for i in range(9)), "2"]
    even = nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)) for _ in range(4)))
    assert names(even) == ["0", "1", "2", "3"]


def test_a_frozen_stage_is_not_trainable() -> None:
    model = TokenTransformer()
    freeze(model, ["embed", "cls", "position", "blocks.0", "blocks.1.linear1"])
    found = trainable_stages(model, stages(model, ("head",)))
    assert [stage.name for stage in found] == ["blocks.1", "head"]
    assert not any("linear1" in name for name in found[0].parameters)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(2), nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.RMSNorm(2)])
def test_a_norm_alone_is_not_a_stage(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2), norm, nn.Linear(2, 2))
    assert names(model, "4") == ["0", "1", "2", "4"]


class Interleaved(nn.Module):
    """Registers a list of layers, a list of norms, an unused part, and the stem last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.unused = nn.Linear(4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(4))
        self.stem = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x))
        out: Tensor = self.head(x)
        return out


def test_stages_follow_the_order_of_the_forward_pass() -> None:
    model = Interleaved()
    found = stages(model, ("head",), reading_order(model, torch.zeros(2, 3)))
    assert [stage.name for stage in found] == [
        "stem", "layers.0", "layers.1", "layers.2", "unused", "layers.3", "head"
    ]  # fmt: skip
    ends = {stage.name: stage.parameters[-1] for stage in found}
    assert [ends[f"layers.{i}"] for i in range(4)] == [f"norms.{i}.bias" for i in range(4)]
    assert ends["unused"] == "unused.bias"


@given(trees(), st.data())
def test_any_order_gives_the_same_stages(model: nn.Module, data: st.DataObject) -> None:
    parameters = [name for name, _ in model.named_parameters()]
    order = data.draw(st.permutations(parameters))
    found = stages(model, (), order[: data.draw(st.integers(0, len(order)))])
    listed = [name for stage in found for name in stage.parameters]
    assert sorted(listed) == sorted(parameters)
    assert len({stage.name for stage in found}) == len(found)
