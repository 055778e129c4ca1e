"""`ClassWeights`, compared with losses weighted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetune import FineTuner
from finetune.callbacks import ClassWeights
from finetune.errors import ArgumentError
from tests.helpers.image_files import labeled_images
from tests.helpers.models import plain_cnn


def uneven() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 4, generator=generator), torch.tensor([0] * 14 + [1] * 5 + [2])


@pytest.mark.parametrize("weights", ["balanced", [20 / 42, 20 / 15, 20 / 3]])
def test_class_weights_scale_the_loss_of_each_sample(net, weights: Any) -> None:
    X, y = uneven()
    model = net(dropout=0.0).eval()
    tuner = FineTuner(nn.Sequential(*model[:1], *model[2:]), device="cpu")
    by_class = torch.tensor([20 / 42, 20 / 15, 20 / 3])
    with torch.no_grad():
        losses = F.cross_entropy(tuner.model(X), y, reduction="none")

    history = tuner.fit((X, y), (X, y), batch_size=20, lr=1e-9, callbacks=[ClassWeights(weights)])

    assert history[0]["loss"] == pytest.approx((by_class[y] * losses).mean().item(), rel=1e-4)
    assert history[0]["val_loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
    assert 0 < history[0]["accuracy"] < 1


def test_balanced_weights_raise_the_recall_of_a_rare_class(net) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 95 + [1] * 5)
    X = torch.randn(100, 4, generator=generator) + y[:, None]
    recall = []
    for added in ([], [ClassWeights()]):
        tuner = FineTuner(nn.Linear(4, 2), device="cpu")
        tuner.fit((X, y), epochs=30, lr=1e-2, callbacks=added)
        recall.append((tuner.predict(X[95:]).argmax(1) == 1).float().mean())
    assert recall[1] > recall[0]


def test_invalid_class_weights_are_an_error(net, blobs) -> None:
    loader = DataLoader(TensorDataset(*blobs()), 8)
    with pytest.raises(ArgumentError, match="2 weights, but the model has 3 classes"):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[ClassWeights([1.0, 2.0])])
    with pytest.raises(ArgumentError, match="'balanced' or one number per class"):
        ClassWeights("balance")
    with pytest.raises(ArgumentError, match="unknown until it is read"):
        FineTuner(net(), device="cpu").fit(loader, callbacks=[ClassWeights()])


@pytest.mark.parametrize("cache", ["memory", False])
def test_class_weights_keep_cached_features_in_use(cache: Any, state_of, same, caplog) -> None:
    def trained(cache: Any) -> FineTuner:
        tuner = FineTuner(plain_cnn(), device="cpu").freeze("0")
        tuner.fit(labeled_images(), epochs=3, batch_size=4, callbacks=[ClassWeights([1.0, 2.0, 3.0])], cache=cache)
        return tuner

    with caplog.at_level("INFO", logger="finetune"):
        assert same(state_of(trained(cache).model), state_of(trained(False).model))
    assert "a callback changes the inputs" not in caplog.text
