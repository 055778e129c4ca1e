"""`Mixup`, compared with torchvision and with losses computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetune import FineTuner, StepOutput
from finetune.callbacks import Mixup
from finetune.errors import ArgumentError
from tests.helpers.image_files import labeled_images
from tests.helpers.models import plain_cnn
from tests.helpers.tuners import BatchRecorder


@pytest.mark.parametrize(("alpha", "cutmix"), [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_mixup_and_cutmix_match_torchvision(alpha: float, cutmix: float) -> None:
    plain, mixed, again = (BatchRecorder(plain_cnn(), device="cpu") for _ in range(3))
    plain.fit(labeled_images(), batch_size=4)
    mixed.fit(labeled_images(), batch_size=4, callbacks=[Mixup(alpha, cutmix)])
    again.fit(labeled_images(), batch_size=4, callbacks=[Mixup(alpha, cutmix)])

    assert any(not torch.equal(X, other) for (X, _), (other, _) in zip(plain.batches, mixed.batches, strict=True))
    for (X, y), (mixture, soft), repeated in zip(plain.batches, mixed.batches, again.batches, strict=True):
        assert soft.shape == (4, 3)
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        assert torch.equal(mixture, repeated[0])
        share = soft[0, y[0]].item() if y[0] != y[3] else None  # torchvision mixes with the sample before
        if share is not None and not cutmix:
            torch.testing.assert_close(mixture[0], share * X[0] + (1 - share) * X[3])
        if not alpha:
            assert ((mixture == X) | (mixture == X.roll(1, 0))).all()


def test_the_loss_uses_the_mixed_labels_and_the_metric_the_likelier_label(state_of) -> None:
    class LastStep(BatchRecorder):
        def training_step(self, batch: Any) -> StepOutput:
            self.step = super().training_step(batch)
            return self.step

    tuner = LastStep(plain_cnn(), device="cpu")
    history = tuner.fit(labeled_images(), batch_size=12, callbacks=[Mixup(1.0)])

    ((_, soft),) = tuner.batches
    logits = tuner.step.outputs
    assert history[0]["loss"] == pytest.approx(-(soft * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    assert history[0]["accuracy"] == pytest.approx((logits.argmax(1) == soft.argmax(1)).float().mean().item())


def test_validation_data_is_not_mixed() -> None:
    tuner = FineTuner(plain_cnn(), device="cpu")

    history = tuner.fit(labeled_images(), labeled_images(), callbacks=[Mixup(1.0)])

    assert history[0]["val_loss"] == pytest.approx(tuner.evaluate(labeled_images())["loss"])


@pytest.mark.parametrize("cache", ["auto", "memory", False])
def test_trap_43_mixed_images_never_use_cached_features(cache: Any, state_of, same, caplog) -> None:
    def trained(cache: Any) -> FineTuner:
        tuner = FineTuner(plain_cnn(), device="cpu").freeze("0")
        tuner.fit(labeled_images(), labeled_images(), epochs=3, batch_size=4, callbacks=[Mixup(1.0)], cache=cache)
        return tuner

    with caplog.at_level("INFO", logger="finetune"):
        assert same(state_of(trained(cache).model), state_of(trained(False).model))
    assert ("a callback changes the inputs" in caplog.text) == (cache is not False)


def test_unsuitable_data_and_arguments_are_an_error(net, blobs) -> None:
    with pytest.raises(ArgumentError, match="expects batches of images"):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[Mixup()])
    with pytest.raises(ArgumentError, match=r"Mixup needs a classification task .* this is regression"):
        FineTuner(net(1), device="cpu").fit((torch.randn(8, 4), torch.randn(8)), callbacks=[Mixup()])
    for alpha, cutmix in ((0.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ArgumentError, match=r"both are 0|at least 0"):
            Mixup(alpha, cutmix)
