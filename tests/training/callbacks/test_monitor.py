"""The value that a callback monitors."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor
from torchmetrics import classification as tm

from finetune import FineTuner
from finetune.callbacks import EarlyStopping, ModelCheckpoint
from finetune.errors import ArgumentError


def percent() -> Any:
    return tm.MulticlassAccuracy(num_classes=3, average="micro") * 100


@pytest.mark.parametrize(
    "make",
    [
        lambda folder, **mode: EarlyStopping("val_percent", patience=99, **mode),
        lambda folder, **mode: ModelCheckpoint(folder, monitor="val_percent", **mode),
        lambda folder, **mode: ModelCheckpoint(folder, monitor="percent", **mode),
    ],
)
def test_a_metric_without_a_direction_asks_for_mode(net, blobs, watch, tmp_path, make: Any) -> None:
    def fit(*callbacks: Any) -> FineTuner:
        tuner = FineTuner(net(), device="cpu", metrics={"percent": percent()})
        tuner.fit(blobs(), blobs(30), epochs=4, lr=3e-2, callbacks=callbacks)
        return tuner

    seen = watch()
    with pytest.raises(ArgumentError, match=r"does not say .* Pass mode='max' if it is, or mode='min'"):
        fit(seen, make(tmp_path))
    assert "on_step_end" not in seen.hooks
    with pytest.raises(ArgumentError, match="Expected mode to be 'max', 'min' or None, but got 'up'"):
        fit(make(tmp_path, mode="up"))

    for mode, best in (("max", max), ("min", min)):
        tuner = fit(make(tmp_path / mode, mode=mode))
        value = best(row["val_percent"] for row in tuner.history)
        if not (tmp_path / mode).exists():
            assert tuner.evaluate(blobs(30))["percent"] == pytest.approx(value)
            continue
        kept = FineTuner.load_checkpoint(tmp_path / mode / "best.safetensors", net()).history[-1]
        name = make(tmp_path).monitor
        assert kept[name] == best(row[name] for row in tuner.history)


@pytest.mark.parametrize("make", [EarlyStopping, lambda m: ModelCheckpoint("never", monitor=m)])
@pytest.mark.parametrize("monitor", ["val_acuracy", "val_los", "accuracy_val", "lr"])
def test_trap_17_a_missing_monitored_value_is_an_error_before_the_first_step(
    net, blobs, watch, state_of, same, monkeypatch, tmp_path, make: Any, monitor: str
) -> None:
    monkeypatch.chdir(tmp_path)
    seen, tuner = watch(), FineTuner(net(), device="cpu")
    before = state_of(tuner.model)

    with pytest.raises(ArgumentError, match=f"no monitored value '{monitor}'.*loss, accuracy, val_loss, val_accuracy"):
        tuner.fit(blobs(), blobs(9), callbacks=[seen, make(monitor)])

    assert seen.hooks == ["on_fit_begin", "on_fit_end"]
    assert same(before, state_of(tuner.model))
    assert not (tmp_path / "never").exists()


def test_trap_17_without_validation_data_val_loss_is_missing(net, blobs) -> None:
    with pytest.raises(
        ArgumentError, match=r"one of loss, accuracy, or with validation data one of val_loss, val_accuracy\."
    ):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[EarlyStopping()])


def test_trap_17_a_metric_that_a_custom_step_leaves_out_is_an_error(net, blobs) -> None:
    class Custom(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return self.model(batch[0]).square().mean()

    with pytest.raises(ArgumentError, match="no monitored value 'accuracy'"):
        Custom(net(), device="cpu").fit(blobs(), epochs=3, callbacks=[EarlyStopping("accuracy")])
