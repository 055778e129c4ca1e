"""`L2SP`, compared with updates computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from finetune import FineTuner
from finetune.callbacks import L2SP, Callback


def test_l2sp_decays_toward_the_start_and_the_head_toward_zero(net, blobs) -> None:
    start = {name: value.detach().clone() for name, value in net().named_parameters()}

    class Level(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return 0 * self.model(batch[0]).sum()

    class Push(Callback):
        """Move the weights away before the first update."""

        @torch.no_grad()
        def on_phase_begin(self, run: Any) -> None:
            for parameter in run.model.parameters():
                parameter.add_(1.0)

    tuner = Level(net(), device="cpu", optimizer="sgd", weight_decay=0.5).freeze("4")
    tuner.fit(
        blobs(8), batch_size=4, lr={"*": 0.1, "6": 0.2}, schedule=lambda progress: 1.0,
        callbacks=[L2SP(0.5), Push()],
    )  # fmt: skip

    now = dict(tuner.model.named_parameters())
    for name, value in start.items():
        expected = value + (1.0 if name.startswith("4") else 0.95**2)
        if name.startswith("6"):
            expected = (value + 1) * (0.9**2 if name == "6.weight" else 1.0)
        torch.testing.assert_close(now[name].detach(), expected)


def test_l2sp_resumes_bit_for_bit(net, blobs, state_of, same, tmp_path) -> None:
    whole, resumed = FineTuner(net(), device="cpu"), FineTuner(net(seed=7), device="cpu")
    whole.fit(blobs(), epochs=3, callbacks=[L2SP(1.0)], lr=1e-2, batch_size=8)
    part = FineTuner(net(), device="cpu")

    class Stop(Callback):
        only_watches = True

        def on_epoch_begin(self, run: Any) -> None:
            if run.epoch == 1:
                raise KeyError

    with pytest.raises(KeyError):
        part.fit(blobs(), epochs=3, callbacks=[L2SP(1.0), Stop()], lr=1e-2, batch_size=8, checkpoint_dir=tmp_path)
    resumed.fit(blobs(), epochs=3, callbacks=[L2SP(1.0)], lr=1e-2, batch_size=8, resume_from=tmp_path)

    assert same(state_of(whole.model), state_of(resumed.model))
