"""Selecting parameters by pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torchvision import models

from finetune import ArgumentError, FineTuner
from finetune.errors import PatternError
from finetune.model.freezing import freeze
from finetune.model.patterns import covers, select
from tests.helpers.models import TiedLanguageModel, TokenTransformer, trees


class Stages(nn.Module):
    """Stages 1 to 10, and a layer without parameters."""

    def __init__(self) -> None:
        super().__init__()
        for i in range(1, 11):
            self.add_module(f"layer{i}", nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.act = nn.ReLU()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layer1", {"layer1.0.weight", "layer1.0.bias", "layer1.1.weight", "layer1.1.bias"}),
        ("layer1.0", {"layer1.0.weight", "layer1.0.bias"}),
        ("layer1.0.bias", {"layer1.0.bias"}),
        ("layer[12].1.weight", {"layer1.1.weight", "layer2.1.weight"}),
        ("layer1?.0.bias", {"layer10.0.bias"}),
        ("*10.0", {"layer10.0.weight", "layer10.0.bias"}),
        (["layer3.0", "layer10.1.bias"], {"layer3.0.weight", "layer3.0.bias", "layer10.1.bias"}),
        (("layer3.0.bias", "layer3.0.bias"), {"layer3.0.bias"}),
        ({"layer4.1.bias"}, {"layer4.1.bias"}),
        ((f"layer{i}.0.bias" for i in (1, 2)), {"layer1.0.bias", "layer2.0.bias"}),
    ],
)
def test_a_glob_over_full_names_covers_everything_below(pattern: Any, expected: set[str]) -> None:
    assert set(select(Stages(), pattern)) == expected


def test_a_star_matches_dots() -> None:
    model = Stages()
    everything = dict(model.named_parameters())
    assert list(select(model, "*")) == list(everything)
    assert set(select(model, "*bias")) == {name for name in everything if name.endswith("bias")}
    assert set(select(model, "layer*.1")) == {name for name in everything if ".1." in name}


@given(st.integers(1, 10))
def test_trap_02_a_stage_does_not_match_another_with_its_name_as_a_prefix(i: int) -> None:
    assert {name.split(".")[0] for name in select(Stages(), f"layer{i}")} == {f"layer{i}"}


def test_parameters_are_in_the_models_order() -> None:
    model = Stages()
    assert list(select(model, ["layer2", "layer1"])) == list(select(model, ["layer1", "layer2"]))


def test_a_bare_parameter_can_be_selected() -> None:
    model = TokenTransformer()
    assert select(model, "cls") == {"cls": model.cls}
    assert list(select(model, ["position", "cls"])) == ["cls", "position"]


def test_a_tied_parameter_matches_under_each_name_and_is_returned_once() -> None:
    model = TiedLanguageModel()
    assert select(model, "embed") == {"embed.weight": model.out.weight}
    assert select(model, "out") == {"out.weight": model.embed.weight, "out.bias": model.out.bias}
    assert len(select(model, ["out", "embed"])) == 2


def test_a_full_name_with_brackets_matches_itself() -> None:
    model = nn.ModuleDict({"conv[3]": nn.Linear(1, 1), "conv3": nn.Linear(1, 1)})
    assert set(select(model, "conv[3]")) == {"conv[3].weight", "conv[3].bias", "conv3.weight", "conv3.bias"}
    assert set(select(model, "conv[3].weight")) >= {"conv[3].weight"}


@given(trees(), st.data())
def test_every_full_name_selects_exactly_the_parameters_below_it(model: nn.Module, data: st.DataObject) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assume(parameters)
    name = data.draw(st.sampled_from(sorted(parameters)))
    above = data.draw(st.integers(0, name.count(".")))
    pattern = name.rsplit(".", above)[0]
    assume("[" not in pattern)  # a bracket is also a glob
    below = {id(p) for n, p in parameters.items() if f"{n}.".startswith(f"{pattern}.")}
    assert {id(p) for p in select(model, pattern).values()} == below


@given(st.text(alphabet="ab.*?", min_size=1, max_size=6), st.text(alphabet="ab", min_size=1, max_size=3))
def test_a_pattern_that_covers_a_module_covers_everything_below_it(pattern: str, name: str) -> None:
    if covers(pattern, name):
        assert covers(pattern, f"{name}.weight")
        assert covers(pattern, f"{name}.a.b")


# ---------------------------------------------------------------- errors


def test_trap_01_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_names() -> None:
    model = models.resnet18(weights=None)
    with pytest.raises(PatternError) as caught:
        freeze(model, "layr4")
    message = str(caught.value)
    assert "'layr4'" in message
    assert "ResNet" in message
    assert "Did you mean 'layer4'" in message
    assert "conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4, avgpool, fc" in message
    assert all(p.requires_grad for p in model.parameters())


def test_one_wrong_pattern_in_a_list_changes_nothing() -> None:
    model = Stages()
    with pytest.raises(PatternError, match="nope"):
        freeze(model, ["layer1", "nope"])
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("pattern", ["layer", "Layer1", "ayer1", "layer1.", ".layer1", "layer1.0.weight.x", "layer11"])
def test_a_part_of_a_name_does_not_match(pattern: str) -> None:
    with pytest.raises(PatternError, match="matches no module"):
        select(Stages(), pattern)


@pytest.mark.parametrize("pattern", ["pool", "act", "[pa]*[lt]"])
def test_matching_only_modules_without_parameters_has_an_error_of_its_own(pattern: str) -> None:
    with pytest.raises(PatternError, match="matches only modules without parameters"):
        select(Stages(), pattern)


@pytest.mark.parametrize("pattern", ["", [], (), [""], None, [None], 3, True, ["layer1", 4], b"layer1", nn.ReLU()])
def test_anything_but_patterns_is_an_error(pattern: Any) -> None:
    with pytest.raises(PatternError, match=r"Expected a name or glob such as 'layer4'"):
        select(Stages(), pattern)


def test_a_model_without_children_says_so() -> None:
    with pytest.raises(PatternError, match="top-level names are: none"):
        select(nn.Linear(1, 1), "w")


LAZY: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyBatchNorm1d(), nn.Linear(8, 3)),
    "last layer": lambda: nn.Sequential(nn.Linear(4, 8), nn.LazyLinear(3)),
}


@pytest.mark.parametrize("make", LAZY.values(), ids=LAZY)
@pytest.mark.parametrize(
    "verb",
    [
        lambda tuner, path: tuner.freeze("0"),
        lambda tuner, path: tuner.freeze(),
        lambda tuner, path: tuner.unfreeze(),
        lambda tuner, path: tuner.summary(),
        lambda tuner, path: tuner.replace_head(4),
        lambda tuner, path: tuner.head,
        lambda tuner, path: tuner.save_checkpoint(path / "x"),
    ],
)
def test_lazy_layers_without_weights_are_an_error_whose_advice_helps(
    make: Callable[[], nn.Module], verb: Callable[[FineTuner, Path], Any], tmp_path: Path
) -> None:
    model, inputs = make(), torch.randn(6, 4)
    with pytest.raises(ArgumentError, match=r"weights of lazy layers, .* Run the model once before, as in model\(X"):
        verb(FineTuner(model, device="cpu"), tmp_path)
    model(inputs[:2])
    verb(FineTuner(model, device="cpu"), tmp_path)


@pytest.mark.parametrize("make", LAZY.values(), ids=LAZY)
def test_the_first_data_gives_lazy_layers_their_weights(make: Callable[[], nn.Module]) -> None:
    data = torch.randn(6, 4), torch.arange(6) % 3
    FineTuner(make(), device="cpu").fit(data, progress=False)
    tuner = FineTuner(make(), device="cpu").replace_head(3, example=data[0][:1])
    tuner.fit(data, strategy="linear_probe", progress=False)
    assert tuner.predict(data[0]).shape == (6, 3)
