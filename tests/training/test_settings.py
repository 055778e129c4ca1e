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
