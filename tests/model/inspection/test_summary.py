"""The summary of a model: rows, totals and notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import models

from finetune import FineTuner
from finetune.errors import ArgumentError
from finetune.model.freezing import eval_mode, freeze, freeze_all_but, hold_frozen_in_eval, train_mode, train_only
from finetune.model.inspection.probing import samples_of_size
from finetune.model.inspection.summary import Summary, summarize
from finetune.model.inspection.summary_rows import RateGroups, SummaryRow
from finetune.model.stages import stages
from finetune.model.surgery.head_search import find_head
from tests.helpers.models import (
    Recurrent,
    TiedLanguageModel,
    TokenTransformer,
    modes,
    small_cnn,
    states,
    trees,
    unfilled,
)


def summary_of(
    model: nn.Module, *head: str, groups: RateGroups | None = None, size: Any = None, depth: int = 0
) -> Summary:
    inputs = None if size is None else samples_of_size(model, size)
    return summarize(model, stages(model, head), groups, inputs, depth)


def numbers(model: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def every_row(rows: tuple[SummaryRow, ...]) -> Iterator[SummaryRow]:
    for row in rows:
        yield row
        yield from every_row(row.layers)


GOLDEN = """
Sequential

 stage   layer                 output      parameters   trainable   state      mode    lr group
 ────────────────────────────────────────────────────────────────────────────────────────────────
 0       Conv2d, BatchNorm2d   [4, 8, 8]          120           0   frozen     eval
           0 Conv2d            [4, 8, 8]          112           0   frozen     eval
           1 BatchNorm2d       [4, 8, 8]            8           0   frozen     eval
 6       Linear                [1000]           5,000       5,000   training   train   *: 0.00025

 all                                            5,120       5,000

Per sample of size [3, 8, 8]: 10,912 multiply-adds, 16 B of activations kept for the backward pass.
Modes are those during training; the whole model is in eval mode now.
Running statistics: training updates those of 0 of 1 norm layers; frozen layers keep theirs.
Weight decay does not apply to norm weights and biases.
"""


@pytest.mark.parametrize("variable", [None, "FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"])
def test_the_table_is_plain_text(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    model = small_cnn(1000).eval()
    freeze(model, ["0", "1"])
    groups = {"6.weight": ("*", 2.5e-4), "6.bias": ("*", 2.5e-4)}
    summary = summary_of(model, "6", groups=groups, size=(3, 8, 8), depth=1)
    assert summary.multiply_adds == 8 * 8 * 4 * 27 + 4 * 1000
    assert summary.activations == 4 * 4  # the four features that the head reads
    assert str(summary) == repr(summary) == GOLDEN.strip("\n")


def test_columns_without_content_are_left_out() -> None:
    text = str(summary_of(small_cnn(), "6"))
    assert text.splitlines()[2].split() == ["stage", "layer", "parameters", "trainable", "state", "mode"]
    assert "multiply-adds" not in text


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "googlenet", "swin_t"])
def test_a_table_fits_on_a_page(name: str) -> None:
    model = unfilled(name)
    head = find_head(model)
    rates = {n: (stage.name, 1.25e-5) for stage in stages(model, head) for n in stage.parameters}
    text = str(summary_of(model, *head, groups=rates, size=(3, 224, 224)))
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) <= 40
    names = [stage.name for stage in stages(model, head)]
    assert [line.split()[0] for line in text.splitlines() if line.split() and line.split()[0] in names] == names


def test_long_names_are_not_truncated() -> None:
    name = "a_very_long_name_" * 5
    text = str(summary_of(nn.ModuleDict({name: nn.Linear(1, 1), "b": nn.Linear(1, 1), "c": nn.Linear(1, 1)})))
    assert name in "".join(text.split()).replace("Linear22trainingtrain", "")
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("training") == 4  # three rows and the note on modes


def test_names_with_brackets_are_not_markup() -> None:
    model = nn.ModuleDict({"a[bold]": nn.Linear(1, 1), "b": nn.Linear(1, 1), "[red]c": nn.Linear(1, 1)})
    assert "a[bold]" in str(summary_of(model))
    assert "[red]c" in str(summary_of(model))


# ------------------------------------------------------------------ freeze state


FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2",
    "r3d_18", "s3d", "mvit_v2_s", "swin3d_t",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_totals_equal_those_of_torch_in_every_family(name: str) -> None:
    model = unfilled(name)
    head = find_head(model)
    freeze_all_but(model, head)
    summary = summary_of(model, *head)
    assert summary.parameters == numbers(model)
    assert summary.trainable == numbers(model, trainable=True)
    assert {(row.state, row.mode) for row in summary.rows[:-1]} == {("frozen", "eval")}
    assert (summary.rows[-1].state, summary.rows[-1].mode) == ("training", "train")
    assert summary.moving_statistics == 0


@given(trees(), st.data())
def test_rows_describe_their_parameters_and_modules(model: nn.Module, data: st.DataObject) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    summary = summary_of(model, depth=9)
    train_mode(model)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    assert summary.parameters == numbers(model)
    assert summary.trainable == numbers(model, trainable=True)
    for row in every_row(summary.rows):
        below = [p for n, p in parameters.items() if n == row.layer or n.startswith(f"{row.layer}.")]
        if row.layer:
            assert row.parameters == sum(p.numel() for p in below)
            assert row.trainable == sum(p.numel() for p in below if p.requires_grad)
            inside = {m.training for m in modules[row.layer].modules()} if row.layer in modules else set()
            assert row.mode == {0: "", 1: "train" if True in inside else "eval", 2: "mixed"}[len(inside)]
        if row.layers and row.layer in modules:
            assert row.parameters == sum(layer.parameters for layer in row.layers)
            assert row.trainable == sum(layer.trainable for layer in row.layers)


def test_shared_parameters_count_once() -> None:
    summary = summary_of(TiedLanguageModel(), "out", size=(9,))
    assert summary.parameters == 11 * 6 + 6 * 6 + 6 + 11
    assert [(row.stage, row.parameters) for row in summary.rows] == [("embed", 66), ("mix", 42), ("out", 11)]


def test_a_partly_frozen_block() -> None:
    model = models.resnet18(weights=None)
    freeze_all_but(model, ["layer4.1.bn1", "fc"])
    summary = summary_of(model, "fc", depth=2)
    (layer4,) = (row for row in summary.rows if row.stage == "layer4")
    first, second = layer4.layers
    assert (layer4.kind, layer4.trainable) == ("2 x BasicBlock", 1024)
    assert (layer4.state, layer4.mode) == ("partly frozen", "mixed")
    assert (first.layer, first.state, first.mode) == ("layer4.0", "frozen", "eval")
    assert (second.layer, second.state, second.mode) == ("layer4.1", "partly frozen", "mixed")
    assert {row.layer: (row.state, row.mode) for row in second.layers} == {
        "layer4.1.conv1": ("frozen", "eval"),
        "layer4.1.bn1": ("training", "train"),
        "layer4.1.relu": ("", "eval"),
        "layer4.1.conv2": ("frozen", "eval"),
        "layer4.1.bn2": ("frozen", "eval"),
    }
    assert (summary.statistics, summary.moving_statistics) == (20, 1)


def test_a_norm_without_parameters_follows_the_layer_before_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))
    freeze(model, "0")
    assert summary_of(model).moving_statistics == 0
    train_only(model, "0")
    assert summary_of(model).moving_statistics == 1
    norms = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2))
    assert summary_of(norms).statistics == 0


def test_the_note_on_modes_compares_them_with_the_current_ones() -> None:
    model = small_cnn()
    freeze(model, ["0", "1"])
    assert summary_of(model).modes == "train"
    assert summary_of(model.eval()).modes == "eval"
    hold_frozen_in_eval(model)
    assert summary_of(model.train()).modes == "training"
    model[6].eval()
    assert summary_of(model).modes == "mixed"
    assert "the model is in different modes now" in str(summary_of(model))


def test_a_row_names_the_groups_that_train_it() -> None:
    model = TokenTransformer()
    freeze(model, ["embed", "position", "blocks.0"])
    groups = dict.fromkeys(states(model), ("all", 1.0))  # groups of frozen parameters are not listed
    groups |= dict.fromkeys(("head.weight", "head.bias"), ("head", 2e-3))
    groups["blocks.1.linear1.weight"] = ("blocks.1", 3e-4)
    rows = {row.stage: row for row in summary_of(model, "head", groups=groups).rows}
    assert {name: (row.state, row.groups) for name, row in rows.items()} == {
        "embed": ("partly frozen", (("all", 1.0),)),
        "blocks.0": ("frozen", ()),
        "blocks.1": ("training", (("all", 1.0), ("blocks.1", 3e-4))),
        "head": ("training", (("head", 2e-3),)),
    }
    text = str(summary_of(model, "head", groups=groups))
    assert "all: 1, 0.0003" in text
    assert " 0.002\n" in text


def test_a_model_without_parameters_has_no_rows() -> None:
    summary = summary_of(nn.Sequential(nn.ReLU()), size=(3,))
    assert (summary.rows, summary.parameters, summary.trainable) == ((), 0, 0)
    assert (summary.multiply_adds, summary.activations) == (0, 0)
    assert "all" in str(summary)


# ------------------------------------------------------------------ shapes and costs


def test_output_shapes_of_resnet18() -> None:
    rows = summary_of(models.resnet18(weights=None), "fc", size=(3, 64, 64)).rows
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
def test_inputs_have_the_dtype_the_model_reads(model: nn.Module, head: str, size: Any, shape: tuple[int, ...]) -> None:
    assert summary_of(model, head, size=size).rows[-1].shape == shape


def test_a_model_that_runs_in_eval_mode_only_has_no_activations() -> None:
    model = unfilled("inception_v3")  # its auxiliary head, active in train mode only, needs larger images
    summary = summary_of(model, "fc", size=(3, 96, 96))
    assert summary.multiply_adds
    assert summary.activations is None
    assert "multiply-adds." in str(summary)


class Named(nn.Module):
    """Takes its inputs by name and returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"logits": self.head((self.embed(tokens) * mask[..., None]).mean(1))}


def test_inputs_by_name() -> None:
    inputs = {"tokens": torch.zeros(2, 5, dtype=torch.long), "mask": torch.ones(2, 5)}
    model = Named()
    summary = summarize(model, stages(model, ("head",)), None, inputs)
    assert [row.shape for row in summary.rows] == [(5, 4), (3,)]
    assert summary.multiply_adds == 12
    assert "Per sample of size [5], [5]: 12 multiply-adds" in str(summary)


def test_a_summary_does_not_run_the_compiler() -> None:
    def backend(*given: Any) -> Any:
        raise AssertionError("it was compiled")

    model = small_cnn()
    compiled: Any = torch.compile(model, backend=backend)
    plain, seen = summary_of(model, size=(3, 8, 8)), summary_of(compiled, size=(3, 8, 8))
    assert [row.shape for row in seen.rows] == [row.shape for row in plain.rows]
    assert (seen.multiply_adds, seen.activations) == (plain.multiply_adds, plain.activations)


# ------------------------------------------------------------------ no side effects


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 64), (64, 64, 3), ()])
def test_a_wrong_size_is_an_error_without_side_effects(size: tuple[int, ...]) -> None:
    model = models.resnet18(weights=None).train()
    before = modes(model)
    with pytest.raises(ArgumentError) as caught:
        summary_of(model, "fc", size=size)
    assert f"ResNet does not accept an input of size {list(size)}" in str(caught.value)
    assert modes(model) == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("size", [(3, -1, 4), (3, 0, 4), (3, 2.0, 4), ("a", 4)])
def test_a_malformed_size_is_an_error(size: Any) -> None:
    with pytest.raises(ArgumentError, match="a whole number of at least 1"):
        summary_of(small_cnn(), size=size)


@pytest.mark.parametrize("mode", [train_mode, eval_mode])
def test_a_summary_has_no_side_effects(mode: Any) -> None:
    model = small_cnn()
    freeze(model, "0")
    mode(model)
    model[6].weight.grad = torch.ones(5, 4)
    state, random = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
    trains, before = states(model), modes(model)
    with torch.no_grad():
        summary = summary_of(model, "6", size=(3, 8, 8))
    assert summary.activations
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert (states(model), modes(model)) == (trains, before)
    assert torch.equal(model[6].weight.grad, torch.ones(5, 4))
    assert [p.grad is None for p in model.parameters()] == [True, True, True, True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class ManyValues(Dataset[dict[str, Any]]):
    """Samples of named values, of which the model takes one."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixels": torch.rand(4), "label": index % 2, "path": f"{index}.png", "weight": torch.ones(())}


class OfPixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.fc(pixels)
        return out


class OnPixels(FineTuner):
    """A tuner whose own steps choose what the model gets of a batch."""

    def training_step(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch["pixels"]), batch["label"])

    def validation_step(self, batch: Any) -> Tensor:
        return self.training_step(batch)


def test_a_summary_follows_a_fit_on_batches_with_more_than_the_model_takes() -> None:
    tuner = OnPixels(OfPixels())
    tuner.fit(ManyValues(), val=False, progress=False)
    text = str(tuner.summary())
    assert "fc" in text
    assert "10" in text


@pytest.mark.parametrize(
    "given", [{"input_size": 224}, {"input_size": "4"}, {"input_size": 2.0}, {"depth": "all"}, {"depth": -1}]
)
def test_a_size_or_depth_of_another_kind_is_an_error(given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"Expected {next(iter(given))} to be"):
        FineTuner(OfPixels()).summary(**given)
