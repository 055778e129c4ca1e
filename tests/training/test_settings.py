"""Settings."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune import FineTuner
from finetune.errors import ArgumentError
from finetune.training.settings import Settings

X, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2


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
        ("loss", [nn.MSELoss()]),
        ("loss", {"a": nn.MSELoss()}),
        ("loss", ("mse",)),
        ("loss", True),
        ("loss", 5),
        ("loss", object()),
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
    with pytest.raises(ArgumentError, match=r"no torch\.compile backend 'inducto'\. Did you mean 'inductor'"):
        Settings(compile="inducto")
    assert [Settings(compile=name).backend for name in ("inductor", "eager", "", False)] == [
        "inductor",
        "eager",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("loss", "missing"),
    [
        (nn.GaussianNLLLoss(), "missing a required argument: 'var'"),
        (F.gaussian_nll_loss, "missing a required argument: 'var'"),
        (nn.TripletMarginLoss(), "missing a required argument: 'negative'"),
        (nn.CTCLoss(), "missing a required argument: 'input_lengths'"),
        (partial(F.margin_ranking_loss, margin=1.0), "missing a required argument: 'target'"),
        (lambda outputs: outputs.mean(), "too many positional arguments"),
    ],
)
def test_a_loss_of_other_arguments_is_an_error_before_a_step(state_of, same, loss: Any, missing: str) -> None:
    model = nn.Linear(4, 2)
    before = state_of(model)
    tuner = FineTuner(model, device="cpu", loss=loss)

    for verb in (tuner.fit, tuner.evaluate):
        with pytest.raises(ArgumentError, match=missing):
            verb((X, y))

    assert same(before, state_of(model))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        partial(F.cross_entropy, label_smoothing=0.1),
        lambda outputs, targets, weight=1.0: weight * F.cross_entropy(outputs, targets),
        lambda *both: both[0].mean(),
        torch.compile(nn.CrossEntropyLoss(), backend="eager"),
    ],
)
def test_a_loss_of_outputs_and_targets_is_taken(loss: Any) -> None:
    Settings(loss=loss).check_loss()


def test_a_custom_step_may_call_a_loss_with_more_arguments() -> None:
    class Gaussian(FineTuner):
        def training_step(self, batch: Any) -> torch.Tensor:
            outputs, loss = self.model(batch[0]), nn.GaussianNLLLoss()
            return loss(outputs[:, 0], batch[1].float(), outputs[:, 1].exp())

    Gaussian(nn.Linear(4, 2), device="cpu", loss=nn.GaussianNLLLoss()).fit((X, y), progress=False)
