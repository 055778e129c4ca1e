"""`EarlyStopping`."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from torch import Tensor

from finetune import FineTuner, Phase
from finetune.callbacks import Callback, EarlyStopping
from tests.helpers.tuners import ScriptedTuner


@pytest.mark.parametrize(
    ("values", "kwargs", "epochs"),
    [
        ([5, 4, 3, 2, 1], {"patience": 1}, 5),
        ([5, 4, 4, 3, 2], {"patience": 1}, 3),
        ([5, 4, 4, 3, 3, 3, 1], {"patience": 2}, 6),
        ([5, 6, 7, 8, 9], {"patience": 3}, 4),
        ([5, 4.9, 4.8, 4.7], {"patience": 2, "min_delta": 0.5}, 3),
        ([5, 4.4, 3.8, 3.2], {"patience": 1, "min_delta": 0.5}, 4),
        ([5, math.nan, math.nan, 1], {"patience": 2}, 3),
        ([math.nan, math.nan, 5, 4], {"patience": 3}, 4),
        ([0.5, 0.6, 0.6, 0.9], {"patience": 1, "monitor": "val_accuracy"}, 3),
        ([0.5, 0.6, 0.7, 0.8], {"patience": 1, "monitor": "val_accuracy"}, 4),
        ([0.5, 0.4, 0.3, 0.9], {"patience": 2, "monitor": "val_accuracy"}, 3),
    ],
)
def test_when_early_stopping_stops(scripted, values: list[float], kwargs: dict[str, Any], epochs: int) -> None:
    assert len(scripted(values, EarlyStopping(**kwargs)).history) == epochs


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
@pytest.mark.parametrize("restore_best", [True, False])
def test_the_best_weights_are_restored_bit_for_bit(scripted, state_of, same, monitor: str, restore_best: bool) -> None:
    class EachEpoch(Callback):
        states: list[dict[str, Tensor]]

        def on_epoch_end(self, run: Any) -> None:
            self.states.append(state_of(run.model))

    each = EachEpoch()
    each.states = []
    values = [0.5, 0.2, 0.4, 0.6] if monitor == "val_loss" else [0.4, 0.8, 0.5, 0.2]

    tuner = scripted(values, each, EarlyStopping(monitor, patience=2, restore_best=restore_best))

    assert len(each.states) == 4
    assert same(state_of(tuner.model), each.states[1 if restore_best else 3])
    assert not same(each.states[1]["1.running_mean"], each.states[3]["1.running_mean"])
    assert not same(each.states[1]["1.num_batches_tracked"], each.states[3]["1.num_batches_tracked"])


def test_the_best_weights_are_restored_when_the_epochs_run_out_too(scripted, net, state_of, same, tmp_path) -> None:
    tuner = scripted([3.0, 1.0, 2.0], EarlyStopping(patience=9), checkpoint_dir=tmp_path)

    best = FineTuner.load_checkpoint(tmp_path / "best.safetensors", net(seed=1))
    assert same(state_of(tuner.model), state_of(best.model))


def test_without_any_improvement_the_last_weights_stay(scripted) -> None:
    tuner = scripted([math.nan, math.nan], EarlyStopping(patience=2))

    assert len(tuner.history) == 2


def test_trap_16_patience_and_best_are_per_phase(net, blobs) -> None:
    class Noted(EarlyStopping):
        noted: list[tuple[float, int]]

        def on_phase_begin(self, run: Any) -> None:
            super().on_phase_begin(run)
            self.noted = [*getattr(self, "noted", []), (self.best, self.waited)]

    tuner = ScriptedTuner(net(), device="cpu")
    tuner.script = iter([1.0, 2.0, 2.0, 9.0, 8.0, 7.0, 9.0])
    stopping = Noted(patience=2)

    tuner.fit(
        blobs(), blobs(20), strategy=[Phase("6", 5, name="a"), Phase("*", 4, name="b")], batch_size=20,
        callbacks=[stopping],
    )  # fmt: skip

    assert [row["phase"] for row in tuner.history] == ["a"] * 3 + ["b"] * 4
    assert stopping.noted == [(math.inf, 0), (math.inf, 0)]


@pytest.mark.parametrize("interrupted", [1, 2, 3, 4, 5])
def test_trap_16_patience_and_best_survive_a_resume(net, blobs, tmp_path, same, state_of, interrupted: int) -> None:
    values = [5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 3.8]

    class Cut(Callback):
        saves_run = True

        def on_epoch_end(self, run: Any) -> None:
            if run.epoch == interrupted:
                run.save(tmp_path / "cut.safetensors")

    def tuner(rest: list[float]) -> ScriptedTuner:
        made = ScriptedTuner(net(), device="cpu")
        made.script = iter(rest)
        return made

    arguments = {"epochs": 7, "batch_size": 20, "lr": 1e-2}
    whole, resumed = tuner(values), tuner(values[interrupted:])
    whole.fit(blobs(), blobs(20), callbacks=[EarlyStopping(patience=3), Cut()], **arguments)
    stopping = EarlyStopping(patience=3)
    resumed.fit(
        blobs(), blobs(20), callbacks=[stopping], resume_from=tmp_path / "cut.safetensors", **arguments
    )  # fmt: skip

    assert len(whole.history) == len(resumed.history) == 6
    assert stopping.best == 3.0
    assert same(state_of(whole.model), state_of(resumed.model))


@pytest.mark.parametrize(
    ("values", "kwargs", "line"),
    [
        (
            [3.0, 1.0, 2.0, 2.5],
            {"patience": 2},
            r"Stopped after epoch 4: val_loss was best in epoch 2 \(1\.0000\), whose",
        ),
        (
            [0.5, 0.75, 0.25],
            {"patience": 1, "monitor": "val_accuracy"},
            r"val_accuracy was best in epoch 2 \(0\.7500\)",
        ),
        ([1.0, 2.0], {"patience": 1, "restore_best": False}, r"val_loss was best in epoch 1 \(1\.0000\)\.$"),
        ([2.0, 1.0, 3.0], {"patience": 9}, r"^val_loss was best in epoch 2 \(1\.0000\), whose weights are back\.$"),
        ([math.nan, math.nan], {"patience": 2}, "Stopped after epoch 2: val_loss was never a number, so the last"),
    ],
)
def test_one_line_says_what_happened(scripted, caplog, values: list[float], kwargs: dict[str, Any], line: str) -> None:
    with caplog.at_level("INFO", logger="finetune"):
        scripted(values, EarlyStopping(**kwargs))

    said = [text for text in caplog.messages if " epoch " in text and "val_" in text and "loss 0" not in text]
    assert [text for text in said if re.search(line, text)] == said[-1:]


def test_without_an_earlier_best_epoch_there_is_no_line(scripted, caplog) -> None:
    with caplog.at_level("INFO", logger="finetune"):
        scripted([3.0, 2.0, 1.0], EarlyStopping(patience=1))

    assert "best in epoch" not in caplog.text
