"""The model within its wrappers."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from finetune import FineTuner
from finetune.model.surgery.adapters import has_adapters
from finetune.model.wrapping import is_synchronized, unwrapped


class Within(nn.Module):
    """A model of the user's own that keeps another in `module`, and is no wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)


class OwnParallel(nn.DataParallel):
    """A wrapper with something of the user's own."""


@pytest.mark.parametrize("model", [nn.Linear(2, 2), Within(), nn.Sequential(nn.Linear(2, 2))])
def test_what_is_not_wrapped_is_itself(model: nn.Module) -> None:
    assert unwrapped(model) is model
    assert not is_synchronized(model)
    assert not has_adapters(model)


def test_wrappers_come_off_in_any_order_and_depth() -> None:
    model = Within()
    compiled = torch.compile(model, backend="eager")
    for wrapped in (
        compiled,
        nn.DataParallel(model),
        OwnParallel(model),
        nn.DataParallel(compiled),
        torch.compile(OwnParallel(compiled), backend="eager"),
    ):
        assert unwrapped(wrapped) is model
        assert not is_synchronized(wrapped)


def test_peft_is_imported_for_its_own_models_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # an import of it would fail
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    tuner = FineTuner(nn.DataParallel(model), device="cpu").replace_head(2).freeze()
    tuner.fit((torch.randn(4, 4), torch.tensor([0, 1, 0, 1])), progress=False)
