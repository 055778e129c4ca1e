"""Settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from finetune.errors import ArgumentError
from finetune.training.settings import Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gradient_accumulation_steps", 0),
        ("gradient_accumulation_steps", 2.0),
        ("max_grad_norm", 0),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", math.nan),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("loss", nn.CrossEntropyLoss),
    ],
)
def test_an_invalid_setting_is_an_error(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"Expected {name} to be"):
        Settings(**{name: value})


def test_plain_settings_leave_out_functions_and_objects() -> None:
    own = nn.MSELoss()

    kept = Settings(loss=own, metrics={"a": "f1", "b": ["x"]}, optimizer=torch.optim.Adam, max_grad_norm=1.0).plain()

    assert kept == {
        "metrics": {"a": "f1", "b": ["x"]},
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 1,
        "precision": "auto",
        "compile": False,
        "seed": 0,
    }
    assert "metrics" not in Settings(metrics=["f1", own]).plain()
    assert "metrics" not in Settings(metrics={"a": own}).plain()


class Own:
    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.mean()


@pytest.mark.parametrize(
    ("settings", "described"),
    [
        ({"loss": nn.MSELoss()}, {"loss": "MSELoss"}),
        ({"loss": nn.functional.mse_loss}, {"loss": "mse_loss"}),
        ({"loss": Own()}, {"loss": "Own"}),
        ({"metrics": {"a": "f1", "b": nn.L1Loss()}}, {"metrics": "a (f1), b (L1Loss)"}),
        ({"metrics": ["f1", nn.L1Loss()]}, {"metrics": "f1, L1Loss"}),
        ({"optimizer": torch.optim.Adam}, {"optimizer": "Adam"}),
        ({"loss": "mse", "metrics": ["f1"], "optimizer": "sgd"}, {}),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named(settings: dict[str, Any], described: dict[str, str]) -> None:
    assert Settings(**settings).objects() == described


@pytest.mark.parametrize(
    ("given", "lost"),
    [
        ({}, ["loss=MSELoss", "optimizer=Adam"]),
        ({"loss": nn.L1Loss()}, ["optimizer=Adam"]),
        ({"loss": "mse", "optimizer": torch.optim.SGD}, []),
    ],
)
def test_what_is_not_given_again_is_said(
    given: dict[str, Any], lost: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    Settings(**given).warn_of_lost({"loss": "MSELoss", "optimizer": "Adam"}, "m.safetensors")
    assert ("m.safetensors was saved with" in caplog.text) == bool(lost)
    assert [name for name in ("loss=MSELoss", "optimizer=Adam") if name in caplog.text] == lost


def test_an_unknown_backend_is_an_error_and_a_known_one_is_not() -> None:
    with pytest.raises(ArgumentError, match=r"no backend 'inducto' of torch\.compile\. Did you mean 'inductor'"):
        Settings(compile="inducto")
    assert [Settings(compile=name).backend for name in ("inductor", "eager", "", False)] == [
        "inductor",
        "eager",
        None,
        None,
    ]
