"""Finite checks: what counts as broken, what was so before, and how often the weights are read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune import FineTuner
from finetune.errors import NonFiniteError
from finetune.training.numerics.finite import BatchStatistics, FiniteCheck

BAD = [math.nan, math.inf, -math.inf]


class Masked(nn.Module):
    """A layer with an attention mask of -inf and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@given(st.integers(0, 19), st.sampled_from(BAD), st.sampled_from([1.0, 3e38, -3e38]))
def test_a_single_bad_number_is_found_anywhere(place: int, bad: float, value: float) -> None:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)  # finite, although sums of them overflow
    check = FiniteCheck(model)
    assert check.broken() == []

    with torch.no_grad():
        (model.weight if place < 16 else model.bias).view(-1)[place % 16] = bad

    assert check.broken() == ["weight" if place < 16 else "bias"]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e5m2], ids=str
)
def test_every_number_format_is_read(dtype: torch.dtype) -> None:
    model = nn.Module()
    largest = torch.finfo(dtype).max if not dtype.is_complex else 3e38
    model.register_buffer("values", torch.full((64,), largest, dtype=torch.float64).to(dtype))
    check = FiniteCheck(model)
    assert check.broken() == []

    bad = torch.tensor([math.inf] + [0.0] * 63).to(dtype)
    model.values.copy_(bad)

    assert check.broken() == ["values"]


def test_what_was_not_finite_at_the_start_is_left_alone() -> None:
    model = Masked()
    check = FiniteCheck(model)
    model.mask[0, 0] = math.nan
    model.register_buffer("later", torch.tensor(math.inf))
    assert check.broken() == []

    with torch.no_grad():
        model.layer.bias[0] = math.nan
    assert check.broken() == ["layer.bias"]
    assert check.broken() == ["layer.bias"]  # until it is mended
    with torch.no_grad():
        model.layer.bias[0] = 0.0
    assert check.broken() == []


def test_what_cannot_be_read_is_left_alone() -> None:
    model = nn.Module()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("meta", torch.empty(3, device="meta"))
    model.register_buffer("flags", torch.ones(3, dtype=torch.bool))
    assert FiniteCheck(model).broken() == []


def test_copies_are_named_after_their_group() -> None:
    model = nn.Linear(4, 4)
    copies = {"the average": {"bias": torch.full((4,), math.nan), "unknown": torch.full((4,), math.nan)}}
    assert FiniteCheck(model).broken(copies) == ["bias of the average"]


def test_a_tensor_is_read_again_if_it_may_have_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    check = FiniteCheck(model)
    check.begin_phase()
    assert check.broken(moment=1) == []
    for tensor in (model[0].bias, model[1].running_var, model[2].bias):
        tensor.data.fill_(math.nan)  # torch does not notice this

    assert check.broken(moment=1) == []
    assert check.broken(moment=2) == ["1.running_var", "2.bias"]  # training may write like this, to these alone
    assert check.broken(moment=2, whole=False) == ["2.bias", "1.running_var"]

    with torch.no_grad():
        model[0].bias.mul_(1)
    assert check.broken(moment=2) == ["0.bias", "1.running_var", "2.bias"]
    assert check.broken(moment=2, whole=False) == ["2.bias", "1.running_var"]


def test_weights_that_are_nan_are_not_saved_over_others(tmp_path: Path) -> None:
    model = Masked()
    tuner = FineTuner(model, device="cpu")
    path = tuner.save_checkpoint(tmp_path / "model.safetensors")  # an infinite mask is saved
    before = path.read_bytes()
    with torch.no_grad():
        model.layer.bias[2] = math.nan
    with pytest.raises(NonFiniteError, match=r"^layer\.bias became NaN or infinite\. Nothing was written\."):
        tuner.save_checkpoint(path)
    assert path.read_bytes() == before
    with torch.no_grad():
        model.layer.bias[2] = math.inf  # it may be meant
    assert tuner.save_checkpoint(path).read_bytes() != before


@pytest.mark.parametrize("bad", BAD)
def test_batch_statistics_that_are_not_finite_are_not_saved(bad: float, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[1].running_var[1] = bad
    for saved, name in ((model, r"1\.running_var"), (model[1], "running_var")):
        with pytest.raises(NonFiniteError, match=f"^{name} became NaN or infinite"):
            FineTuner(saved, device="cpu").save_checkpoint(tmp_path / "a.safetensors")


def test_statistics_are_restored_after_an_error() -> None:
    norm = nn.BatchNorm1d(3)
    statistics = BatchStatistics(norm)
    statistics.remember(None)
    with pytest.raises(ValueError, match="Expected more than 1"), statistics.undone_on_error():
        norm(norm(torch.randn(4, 3))[:1])
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0, 0]
    assert norm.num_batches_tracked == 0
    assert BatchStatistics(norm)
    assert not BatchStatistics(nn.Linear(2, 2))
