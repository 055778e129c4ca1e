"""Models that cannot be split, and the reasons given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.caching.declined import Declined
from finetune.caching.prefix.cut import cut_prefix
from finetune.model.freezing import train_only
from tests.helpers.prefixes import (
    WIDTH,
    Applied,
    cut,
    frozen_then,
    linear,
    whole,
)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (nn.Sequential(nn.Dropout(0.5)), "before any frozen layer"),
        (nn.Sequential(linear(), Centred()), "mix the samples"),
        (nn.Identity(), "'head.weight' comes before any frozen layer"),
        (Applied(lambda m, x: m.inner(F.dropout(x, 0.5)), inner=linear()), "a random draw in 'body'"),
        (Applied(lambda m, x: m.inner(x.mul_(2)), inner=linear()), "changes its input in place"),
    ],
    ids=["no parameters", "mixing", "nothing", "random", "input changed"],
)
def test_declined(body: nn.Module, reason: str) -> None:
    said = cut(Applied(whole, body=body, head=linear()), ["head.*"], torch.randn(4, WIDTH))
    assert isinstance(said, Declined)
    assert reason in said.reason


def test_declined_batch_norms_in_train_mode() -> None:
    norm = nn.BatchNorm1d(WIDTH)
    model = Applied(whole, body=nn.Sequential(norm, linear()), head=linear())
    train_only(model, ["head.*"])
    norm.train()
    said = cut_prefix(model, torch.randn(4, WIDTH))
    assert isinstance(said, Declined)
    assert said.reason.startswith("a batch norm in 'body.0' that runs on the statistics of the batch comes before")


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_declined_hooks(register: str) -> None:
    model = frozen_then(whole)
    getattr(model.body[0], register)(lambda *args: None)
    said = cut(model, ["head.*"], torch.randn(4, WIDTH))
    assert isinstance(said, Declined)
    assert said.reason.startswith("a forward hook watches")


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (torch.randn(1, WIDTH), "one sample"),
        ("words", "are not tensors"),
        ((torch.randn(4, WIDTH), torch.randn(3, WIDTH)), "share a first dimension"),
        (torch.randn(4, WIDTH, requires_grad=True), "inputs require a gradient"),
    ],
)
def test_declined_inputs(inputs: Any, reason: str) -> None:
    said = cut(frozen_then(whole), ["head.*"], inputs)
    assert isinstance(said, Declined)
    assert reason in said.reason
