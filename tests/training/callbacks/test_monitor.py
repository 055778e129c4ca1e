"""The value that a callback monitors."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from finetune import FineTuner
from finetune.callbacks import EarlyStopping, ModelCheckpoint
from finetune.errors import ArgumentError


@pytest.mark.parametrize("make", [EarlyStopping, lambda m: ModelCheckpoint("never", monitor=m)])
@pytest.mark.parametrize("monitor", ["val_acuracy", "val_los", "accuracy_val", "lr"])
def test_trap_17_a_missing_monitored_value_is_an_error_before_the_first_step(
    net, blobs, watch, state_of, same, monkeypatch, tmp_path, make: Any, monitor: str
) -> None:
    monkeypatch.chdir(tmp_path)
    seen, tuner = watch(), FineTuner(net(), device="cpu")
    before = state_of(tuner.model)

    with pytest.raises(ArgumentError, match=f"'{monitor}' to monitor.*loss, accuracy, val_loss, val_accuracy"):
        tuner.fit(blobs(), blobs(9), callbacks=[seen, make(monitor)])

    assert seen.hooks == ["on_fit_begin", "on_fit_end"]
    assert same(before, state_of(tuner.model))
    assert not (tmp_path / "never").exists()


def test_trap_17_without_validation_data_val_loss_is_missing(net, blobs) -> None:
    with pytest.raises(
        ArgumentError, match=r"run has loss, accuracy\. Values named val_\.\.\. require validation data"
    ):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[EarlyStopping()])


def test_trap_17_a_metric_that_a_custom_step_leaves_out_is_an_error(net, blobs) -> None:
    class Custom(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return self.model(batch[0]).square().mean()

    with pytest.raises(ArgumentError, match="no value 'accuracy' to monitor"):
        Custom(net(), device="cpu").fit(blobs(), epochs=3, callbacks=[EarlyStopping("accuracy")])
