"""The table a person reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from finetune.errors import ArgumentError
from finetune.model.freezing import freeze, freeze_all_but
from finetune.model.head_search import find_head
from finetune.model.summary import Row, summarize

from .conftest import Recurrent, TokenTransformer, modes, small_cnn, unfilled


def numbers(model: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "googlenet", "densenet121"])
def test_counts_are_torchs(name: str) -> None:
    model = unfilled(name)
    head = find_head(model)
    freeze_all_but(model, head)
    summary = summarize(model, head)
    assert summary.parameters == numbers(model)
    assert summary.trainable == numbers(model, trainable=True)
    assert {row.state for row in summary.rows[:-1]} == {"frozen"}
    assert summary.rows[-1].state == "training"
    assert all(row.shape is None and row.lr is None for row in summary.rows)


def test_a_row_says_what_trains() -> None:
    assert [Row("a", 4, n, None, None).state for n in (0, 3, 4)] == ["frozen", "partly frozen", "training"]
    model = TokenTransformer()
    freeze(model, ["embed", "position", "blocks.0"])
    rates = {"embed": 1.0, "blocks.0": 2.0, "blocks.1": 3e-4, "head": 1e-3}
    rows = {row.stage: row for row in summarize(model, ("head",), rates).rows}
    assert {name: (row.state, row.lr) for name, row in rows.items()} == {
        "embed": ("partly frozen", 1.0),
        "blocks.0": ("frozen", None),  # a rate that nothing is trained at is none
        "blocks.1": ("training", 3e-4),
        "head": ("training", 1e-3),
    }


@pytest.mark.parametrize("variable", [None, "FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"])
def test_the_table_is_plain_text(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    model = models.resnet18(weights=None)
    freeze_all_but(model, "fc")
    text = str(summarize(model, ("fc",), {"fc": 1e-3}, (3, 64, 64)))
    assert "\x1b" not in text
    assert text == repr(summarize(model, ("fc",), {"fc": 1e-3}, (3, 64, 64)))
    lines = text.splitlines()
    assert lines[0].strip() == "ResNet"
    cells = {parts[0]: parts for line in lines if (parts := [p.strip() for p in line.strip("│┃").split("│")])[1:]}
    assert cells["conv1"] == ["conv1", "[64, 32, 32]", "frozen", "9,536", "0", ""]
    assert cells["fc"] == ["fc", "[1000]", "training", "513,000", "513,000", "0.001"]
    assert cells["all"] == ["all", "", "", "11,689,512", "513,000", ""]
    assert lines[-1] == "Norm weights and biases take no weight decay; frozen batch norms stay in eval mode."


def test_a_name_in_brackets_is_shown_as_it_is() -> None:
    model = nn.ModuleDict({"a[bold]": nn.Linear(1, 1), "b": nn.Linear(1, 1), "[red]c": nn.Linear(1, 1)})
    assert "a[bold]" in str(summarize(model))
    assert "[red]c" in str(summarize(model))


def test_output_shapes_of_resnet18() -> None:
    rows = summarize(models.resnet18(weights=None), ("fc",), input_size=(3, 64, 64)).rows
    assert {row.stage: row.shape for row in rows} == {
        "conv1": (64, 32, 32), "layer1": (64, 16, 16), "layer2": (128, 8, 8), "layer3": (256, 4, 4),
        "layer4": (512, 2, 2), "fc": (1000,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "head", "size", "shape"),
    [
        (Recurrent(nn.LSTM), "classify", (9,), (5,)),
        (TokenTransformer(), "head", [16, 6], (5,)),
        (small_cnn().double(), "6", (3, 8, 8), (5,)),
    ],
)
def test_inputs_are_of_the_type_the_model_reads(model: nn.Module, head: str, size: Any, shape: tuple[int, ...]) -> None:
    assert summarize(model, (head,), input_size=size).rows[-1].shape == shape


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 64), (64, 64, 3), ()])
def test_a_wrong_size_is_an_error_and_leaves_no_trace(size: tuple[int, ...]) -> None:
    model = models.resnet18(weights=None).train()
    before = modes(model)
    with pytest.raises(ArgumentError) as caught:
        summarize(model, ("fc",), input_size=size)
    assert f"ResNet does not accept an input of size {list(size)}" in str(caught.value)
    assert modes(model) == before
    assert not any(module._forward_hooks for module in model.modules())


def test_looking_changes_nothing() -> None:
    model = small_cnn()
    state, random = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
    summarize(model, ("6",), input_size=(3, 8, 8))
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(modes(model).values())


def test_a_model_without_parameters_has_no_rows() -> None:
    summary = summarize(nn.Sequential(nn.ReLU()), input_size=(3,))
    assert (summary.rows, summary.parameters, summary.trainable) == ((), 0, 0)
    assert "all" in str(summary)
