"""`ClassWeights`, compared with losses weighted by hand."""

from __future__ import annotations

from functools import partial
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


WEIGHTS = torch.tensor([1.0, 4.0, 0.5])


def linear(**options: Any) -> FineTuner:
    torch.manual_seed(0)
    return FineTuner(nn.Linear(4, 3), device="cpu", optimizer=torch.optim.SGD, **options)


@pytest.mark.parametrize("size", [7, 20])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("form", ["loss object", "function", "soft", "ignored"])
def test_each_loss_is_multiplied_by_its_weight(form: str, smoothing: float, size: int) -> None:
    X, y = uneven()
    loss: Any = partial(F.cross_entropy, label_smoothing=smoothing)
    if form in ("loss object", "ignored"):
        loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    tuner = linear(loss=loss)
    with torch.no_grad():
        by_class = torch.stack(
            [
                F.cross_entropy(tuner.model(X), torch.full_like(y, c), reduction="none", label_smoothing=smoothing)
                for c in range(3)
            ],
            1,
        )
    shares = F.one_hot(y, 3) * 0.7 + 0.1 if form == "soft" else F.one_hot(y, 3).float()
    losses = (shares * WEIGHTS * by_class).sum(1)[y != 2 if form == "ignored" else slice(None)]

    targets = {"soft": shares, "ignored": torch.where(y == 2, -100, y)}.get(form, y)

    history = tuner.fit((X, targets), batch_size=size, lr=1e-9, callbacks=[ClassWeights(WEIGHTS.tolist())])

    assert history[0]["loss"] == pytest.approx(losses.mean().item(), rel=1e-4)


def test_doubled_weights_double_the_loss() -> None:
    once, twice = (
        linear(loss=nn.CrossEntropyLoss(label_smoothing=0.3)).fit(
            uneven(), lr=1e-9, callbacks=[ClassWeights((WEIGHTS * factor).tolist())]
        )
        for factor in (1, 2)
    )

    assert twice[0]["loss"] == pytest.approx(2 * once[0]["loss"], rel=1e-4)


@pytest.mark.parametrize("weights", [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [5.0, 0.1, 0.1]])
def test_weights_change_no_training_metric(weights: list[float]) -> None:
    weighted, plain = (
        linear().fit(uneven(), lr=1e-9, callbacks=added)[0]["accuracy"] for added in ([ClassWeights(weights)], [])
    )

    assert weighted == plain


def test_masks_are_weighted_by_pixel() -> None:
    torch.manual_seed(0)
    images, masks = torch.rand(6, 3, 4, 4), torch.randint(0, 3, (6, 4, 4))
    tuner = FineTuner(nn.Conv2d(3, 3, 1), device="cpu", loss="cross_entropy", optimizer=torch.optim.SGD)
    with torch.no_grad():
        losses = F.cross_entropy(tuner.model(images), masks, reduction="none")

    history = tuner.fit((images, masks), lr=1e-9, callbacks=[ClassWeights(WEIGHTS)])

    assert history[0]["loss"] == pytest.approx((WEIGHTS[masks] * losses).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MultiMarginLoss(),
        nn.CrossEntropyLoss(ignore_index=2),
        lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=0.1),
    ],
)
def test_a_loss_that_takes_no_weights_is_an_error_before_training(loss: Any, watch) -> None:
    seen, tuner = watch(), linear(loss=loss)

    with pytest.raises(ArgumentError, match="Remove the callback, and give the weights to the loss itself"):
        tuner.fit(uneven(), callbacks=[ClassWeights([1.0, 2.0, 3.0]), seen])

    assert "on_step_end" not in seen.hooks


LABELED = (torch.rand(12, 4), ["ant", "bee", "cat"] * 4)
NUMBERED = (LABELED[0], torch.arange(12) % 3)


def first_loss(weights: Any, data: Any) -> float:
    torch.manual_seed(0)
    tuner = FineTuner(nn.Linear(4, 3), device="cpu")
    history = tuner.fit(data, val=False, batch_size=12, callbacks=ClassWeights(weights), progress=False)
    return float(history[0]["loss"])


@pytest.mark.parametrize(
    ("weights", "data"),
    [
        ({"cat": 5, "ant": 1, "bee": 3}, LABELED),
        ({2: 5.0, 0: 1.0, 1: 3.0}, LABELED),
        ({0: 1, 1: 3, 2: 5}, NUMBERED),
        (torch.tensor([1, 3, 5]), NUMBERED),
        (torch.tensor([1, 3, 5]).numpy(), NUMBERED),
        ((1, 3, 5), LABELED),
    ],
)
def test_weights_are_taken_in_any_form(weights: Any, data: Any) -> None:
    assert first_loss(weights, data) == pytest.approx(first_loss([1.0, 3.0, 5.0], data))


def test_a_weight_is_found_by_its_name_in_any_unicode_form() -> None:
    data = LABELED[0], ["caf\u00e9", "bee", "cat"] * 4  # in the order bee, café, cat
    assert first_loss({"cat": 5, "cafe\u0301": 3, "bee": 1}, data) == pytest.approx(first_loss([1.0, 3.0, 5.0], data))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1, -1, 1], "a number at least 0, but got -1"),
        ([1, float("nan"), 1], "but got nan"),
        ([1, float("inf"), 1], "but got inf"),
        (["1", 1, 1], "but got '1'"),
        ([1, None, 1], "but got None"),
        ([[1], [1], [1]], "each of the class weights"),
        ({"ant": 1, "bee": 2}, "for each of ant, bee, cat, but got 'ant', 'bee'"),
        ({1: 1, 2: 2, 3: 3}, "for each of ant, bee, cat, but got 1, 2, 3"),
        ({}, "for each of ant, bee, cat"),
        ([0.0, 0.0, 0.0], "a weight above 0, but got"),
        ({"ant": 0, "bee": 0, "cat": 0}, "a weight above 0, but got"),
        (torch.tensor(2.0), "has 1 weights"),
    ],
)
def test_weights_that_are_not_one_number_per_class_are_an_error(weights: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        first_loss(weights, LABELED)


@pytest.mark.parametrize("weights", [None, 3, "heavy", {1.0, 2.0}, print])
def test_what_is_no_series_of_weights_is_refused_at_once(weights: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected weights to be 'balanced' or one number per class"):
        ClassWeights(weights)
