"""SkipNonFinite: a skipped update leaves no trace but its count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetune import FineTuner, StepOutput
from finetune.callbacks import EMA, Callback, ModelCheckpoint, SkipNonFinite
from finetune.errors import ArgumentError, NonFiniteError

FLAG = 1e4  # an input that spoils its batch


class Flagged(FineTuner):
    """Make the loss or its gradient NaN for batches with a flagged input."""

    how = "loss"

    def training_step(self, batch: Any) -> StepOutput:
        output = super().training_step(batch)
        assert isinstance(output, StepOutput)
        if batch[0].max() < FLAG:
            return output
        if self.how == "loss":
            return output._replace(loss=output.loss * math.nan)
        return output._replace(loss=output.loss + (output.outputs * 0).float().sqrt().sum())


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batches(flagged: str, *, leave_out: bool = False) -> DataLoader[Any]:
    """Return batches of 4 in order, one per character: `x` is flagged, `o` leaves out what a skipped one would be."""
    generator = torch.Generator().manual_seed(1)
    samples: list[tuple[Tensor, int]] = []
    for character in flagged:
        inputs = torch.randn(4, 4, generator=generator)
        if character == "x":
            inputs[1, 2] = 2 * FLAG
        if not (leave_out and character in "xo"):
            samples += [(row, k % 3) for k, row in enumerate(inputs)]
    return DataLoader(samples, batch_size=4)


def fitted(data: DataLoader[Any], how: str, *callbacks: Callback, interval: int = 1, **settings: Any) -> Flagged:
    tuner = Flagged(model(), device="cpu", **settings)
    tuner.how, tuner.precision.interval = how, interval
    tuner.fit(data, epochs=2, lr=1e-2, schedule="constant", callbacks=callbacks, progress=False)
    return tuner


@pytest.mark.parametrize("interval", [1, 32])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize(("flagged", "accumulation"), [(".x..x", 1), ("..ox..", 2)])
def test_skipping_an_update_is_to_leave_it_out(
    how: str, optimizer: str, interval: int, flagged: str, accumulation: int, state_of: Any, same: Any, timeless: Any
) -> None:
    settings = {"optimizer": optimizer, "gradient_accumulation_steps": accumulation, "max_grad_norm": 1.0}
    skipped = fitted(batches(flagged), how, SkipNonFinite(), EMA(0.5), interval=interval, **settings)
    without = fitted(batches(flagged, leave_out=True), how, EMA(0.5), **settings)

    assert same(state_of(skipped.model), state_of(without.model))
    rows, expected = timeless(skipped.history), timeless(without.history)
    assert [row.pop("skipped_steps") for row in rows] == [flagged.count("x")] * 2
    assert rows == expected


@pytest.mark.parametrize(("how", "counted", "lowered"), [("loss", 2, 0), ("gradient", 0, 4)])
def test_skips_of_gradient_scaling_stay_its_own(how: str, counted: int, lowered: int) -> None:
    tuner = fitted(batches(".x..x."), how, SkipNonFinite(), precision="fp16")
    without = fitted(batches(".x..x.", leave_out=True), how, SkipNonFinite(), precision="fp16")

    assert [row["skipped_steps"] for row in tuner.history] == [counted, counted]
    scale, expected = (own.precision.scaler.get_scale() for own in (tuner, without))  # type: ignore[union-attr]
    assert scale == expected / 2**lowered  # a loss that is NaN says nothing about the scale


def test_more_than_limit_in_a_row_is_an_error() -> None:
    assert len(fitted(batches("xx.xx."), "loss", SkipNonFinite(limit=2)).history) == 2
    with pytest.raises(NonFiniteError, match="epoch 1, update 4 of phase 'fit'"):
        fitted(batches(".xxx.."), "loss", SkipNonFinite(limit=2))
    with pytest.raises(NonFiniteError, match="epoch 2, update 1"):  # also across epochs
        fitted(batches("x.x"), "loss", SkipNonFinite(limit=1))


def test_an_epoch_of_skipped_updates_has_no_loss() -> None:
    (first, _) = fitted(batches("xx"), "loss", SkipNonFinite(limit=9)).history
    assert math.isnan(first["loss"])
    assert first["skipped_steps"] == 2


class Crash(Callback):
    """End the run after an update, or after the first epoch if `stop` is None, once the checkpoint is written."""

    saves_run = True

    def __init__(self, stop: int | None) -> None:
        self.stop = stop

    def on_step_end(self, run: Any) -> None:
        if run.position.step == self.stop:
            raise KeyError(self.stop)

    def on_epoch_end(self, run: Any) -> None:
        if self.stop is None:
            raise KeyError(self.stop)


def resumed(flagged: str, limit: int, stop: int | None, folder: Path) -> Flagged:
    """Fit, crash, and fit again from the checkpoint."""
    with pytest.raises(KeyError):
        fitted(batches(flagged), "loss", SkipNonFinite(limit), ModelCheckpoint(folder, every_steps=1), Crash(stop))
    tuner, plan = Flagged(model(), device="cpu"), {"epochs": 2, "lr": 1e-2, "schedule": "constant"}
    tuner.fit(batches(flagged), callbacks=SkipNonFinite(limit), resume_from=folder, progress=False, **plan)
    return tuner


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_run_counts_on(stop: int, tmp_path: Path, state_of: Any, same: Any, timeless: Any) -> None:
    whole = fitted(batches("x.xx."), "loss", SkipNonFinite(limit=2))
    again = resumed("x.xx.", 2, stop, tmp_path)
    assert same(state_of(again.model), state_of(whole.model))
    assert timeless(again.history) == timeless(whole.history)


def test_a_resumed_run_has_skipped_as_many_in_a_row(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="epoch 2, update 1"):
        resumed("x.x", 1, None, tmp_path)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "2"])
def test_the_limit_is_a_count(limit: Any) -> None:
    with pytest.raises(ArgumentError, match="limit"):
        SkipNonFinite(limit=limit)
