"""Runs whose weights or buffers stop being finite: nothing of them is saved, and the error says what is left."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import FineTuner, Phase
from finetune.callbacks import EMA, Callback, EarlyStopping, ModelCheckpoint
from finetune.errors import NonFiniteError

HUGE = 1e30


class Spoil(Callback):
    """Write a number into a tensor of the model after an update, as an overflow would."""

    def __init__(self, name: str, value: float = math.inf, step: int = 2, hook: str = "on_step_end") -> None:
        self.name, self.value, self.step, self.hook = name, value, step, hook

    def on_step_end(self, run: Any) -> None:
        self._spoil(run, "on_step_end")

    def on_epoch_end(self, run: Any) -> None:
        self._spoil(run, "on_epoch_end")

    def on_phase_end(self, run: Any) -> None:
        self._spoil(run, "on_phase_end")

    def _spoil(self, run: Any, hook: str) -> None:
        if hook == self.hook and run.position.step == self.step:
            run.model.state_dict()[self.name].view(-1)[0] = self.value


@pytest.mark.parametrize("interval", [1, 32])
def test_inputs_that_overflow_the_statistics_are_an_error(net, blobs, tmp_path: Path, interval: int) -> None:
    X, y = blobs()
    tuner = FineTuner(net(), device="cpu")
    tuner.precision.interval = interval

    with pytest.raises(NonFiniteError) as caught:
        tuner.fit((X * HUGE, y), (X, y), epochs=3, checkpoint_dir=tmp_path)

    assert "1.running_var became NaN or infinite, as found after epoch 1" in str(caught.value)
    assert "No weights from before were saved" in str(caught.value)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == []
    assert not tuner.history


@pytest.mark.parametrize("weights", ["weights", "statistics"])
def test_a_good_file_is_never_overwritten(net, blobs, tmp_path: Path, weights: str) -> None:
    FineTuner(net(), device="cpu").fit(blobs(), val=blobs(), epochs=2, checkpoint_dir=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    again = FineTuner(net(), device="cpu")
    name = "0.weight" if weights == "weights" else "1.running_mean"

    with pytest.raises(NonFiniteError, match=name):
        again.fit(
            blobs(),
            val=blobs(),
            epochs=4,
            callbacks=[Spoil(name, step=again_at(blobs))],
            checkpoint_dir=tmp_path,
            resume_from="auto",
            resume_changed=True,
        )

    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before


def again_at(blobs: Any) -> int:
    """Return the number of updates of three epochs."""
    return 3 * -(-len(blobs()[0]) // 32)


def test_one_update_at_an_absurd_rate_is_an_error(blobs, tmp_path: Path) -> None:
    tuner = FineTuner(nn.Linear(4, 3), device="cpu", optimizer="sgd")
    X, y = blobs()

    with pytest.raises(NonFiniteError, match=r"weight.* became NaN or infinite, as found after epoch 1, update 1"):
        tuner.fit((X * 100, y), lr=1e38, schedule="constant", batch_size=len(X), checkpoint_dir=tmp_path)

    assert list(tmp_path.glob("*.safetensors")) == []


def test_the_error_says_where_the_last_good_weights_are(net, blobs, tmp_path: Path) -> None:
    tuner = FineTuner(net(), device="cpu")
    with pytest.raises(NonFiniteError, match=r"after epoch 1, update 3 of phase 'fit'. The weights from before are in"):
        tuner.fit(blobs(), batch_size=4, callbacks=[Spoil("0.bias", step=3), ModelCheckpoint(tmp_path, every_steps=1)])
    again = FineTuner.load_checkpoint(tmp_path / "last.safetensors", net())
    assert all(value.isfinite().all() for value in again.model.state_dict().values())


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_phase_end"])
def test_the_end_of_a_phase_is_checked_without_any_save(net, blobs, hook: str) -> None:
    with pytest.raises(NonFiniteError, match=r"4\.bias became NaN"):
        FineTuner(net(), device="cpu").fit(
            blobs(), batch_size=len(blobs()[0]), callbacks=[Spoil("4.bias", math.nan, 1, hook)]
        )


def test_an_average_that_is_not_finite_is_an_error(net, blobs, tmp_path: Path) -> None:
    class SpoiledAverage(EMA):
        def on_step_end(self, run: Any) -> None:
            super().on_step_end(run)
            self._average["0.weight"][0, 0] = math.nan

    with pytest.raises(NonFiniteError, match=r"0\.weight of the average of SpoiledAverage became NaN"):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[SpoiledAverage()], checkpoint_dir=tmp_path)
    assert list(tmp_path.glob("*.safetensors")) == []


class Masked(nn.Module):
    """A model whose buffers hold -inf and NaN on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
        self.register_buffer("unset", torch.tensor(math.nan))

    def forward(self, x: Tensor) -> Tensor:
        attention = self.mask.softmax(1)
        return self.layer(x @ attention.T)


def test_a_model_with_masks_of_infinity_trains_and_resumes(blobs, tmp_path: Path, state_of, same) -> None:
    FineTuner(Masked(), device="cpu").fit(blobs(), epochs=1, checkpoint_dir=tmp_path)
    tuner = FineTuner(Masked(), device="cpu")
    tuner.fit(blobs(), epochs=2, checkpoint_dir=tmp_path, resume_from="auto", resume_changed=True)
    assert len(tuner.history) == 2
    assert tuner.model.mask[0, 1] == -math.inf


def test_an_update_names_its_samples_its_phase_and_what_was_broken_before(net, blobs) -> None:
    tuner = FineTuner(net(), device="cpu", gradient_accumulation_steps=2)
    spoil = Spoil("4.weight", math.nan, step=1)
    with pytest.raises(NonFiniteError) as caught:
        tuner.fit(blobs(16), strategy=[Phase("*", name="all")], batch_size=4, callbacks=[spoil])
    text = str(caught.value)
    assert "The loss became NaN or infinite in epoch 1, update 2 of phase 'all' (sample " in text
    assert "and 5 more). The model keeps its state" in text
    assert "4.weight had already become NaN or infinite before it." in text


class NoValidationLoss(FineTuner):
    def validation_step(self, batch: Any) -> Any:
        output = super().validation_step(batch)
        return output._replace(loss=output.loss * self.bad)  # type: ignore[union-attr]

    bad = math.nan


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_validation_loss_that_is_no_number_is_said_once_and_never_best(
    net, blobs, tmp_path: Path, caplog, bad
) -> None:
    tuner = NoValidationLoss(net(), device="cpu")
    tuner.bad = bad
    with caplog.at_level(logging.WARNING, "finetune"):
        tuner.fit(blobs(), val=blobs(), epochs=3, callbacks=[EarlyStopping(patience=9)], checkpoint_dir=tmp_path)
    assert caplog.text.count("val_loss is NaN or infinite") == 1
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["last.safetensors", "previous.safetensors"]
    assert len(tuner.history) == 3


def test_an_infinite_score_is_never_the_best(net, blobs, tmp_path: Path) -> None:
    class Endless(Callback):
        def on_evaluate_end(self, run: Any) -> None:
            run.row["val_loss"] = -math.inf if run.epoch == 0 else run.row["val_loss"]

    stop = EarlyStopping(patience=5)
    FineTuner(net(), device="cpu").fit(blobs(), val=blobs(), epochs=2, callbacks=[Endless(), stop])
    assert stop.best_epoch == 2
