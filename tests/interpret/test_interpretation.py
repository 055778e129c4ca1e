"""`FineTuner.interpret` on data in any form, and the quantities that each task has."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from finetune import FineTuner, Interpretation
from finetune.callbacks import Callback
from finetune.errors import ArgumentError
from tests.helpers.answers import random_answers
from tests.helpers.tensors import gaussian_blobs

KINDS = ("classification", "binary", "multilabel", "regression")


class Counted(nn.Linear):
    """Counts the samples that it gets."""

    samples = 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        return super().forward(x)


class Stream(IterableDataset[Any]):
    """The blobs, without a length or an index."""

    def __iter__(self) -> Any:
        X, y = gaussian_blobs(30)
        return iter([(x, int(label)) for x, label in zip(X, y, strict=True)])


def test_it_is_one_forward_pass_with_the_numbers_of_evaluate() -> None:
    X, y = gaussian_blobs(60)
    model = Counted(4, 3)
    tuner = FineTuner(model, device="cpu")
    measured = tuner.evaluate((X, y))
    model.samples = 0
    found = tuner.interpret((X, y), batch_size=7)
    str(found), found.surest(), found.reliability(), found.roc_curves
    assert model.samples == 60
    assert found.top1 == pytest.approx(measured["accuracy"])
    assert torch.equal(found.predictions.outputs, tuner.predict(X))


def test_answers_are_those_of_classify_after_calibration() -> None:
    X, y = gaussian_blobs(60)
    tuner = FineTuner(nn.Linear(4, 1), device="cpu").calibrate((X, (y > 0).long()))
    found, answers = tuner.interpret((X, (y > 0).long())), tuner.classify(X)
    assert found.task == "binary"
    wrong = {index for index, answer in enumerate(answers) if answer.best != str(int(y[index] > 0))}
    assert {row.index for row in found.mistakes(60)} == wrong
    row = found.mistakes(1)[0]
    assert row.probabilities == answers[row.index].scores


def test_a_stream_has_numbers_in_the_place_of_names() -> None:
    tuner = FineTuner(nn.Linear(4, 3), device="cpu")
    found = tuner.interpret(Stream())
    assert len(found) == 30
    assert all(row.sample == f"sample {row.index}" for row in found.mistakes())
    assert "<img" not in found._repr_html_()
    found.plot_mistakes(2)


def test_a_folder_has_its_files_and_classes(class_folder: Callable[..., Path]) -> None:
    folder = class_folder(husky=4, pug=5)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    found = FineTuner(model, device="cpu", preprocessing={"crop_size": 32}).interpret(folder)
    assert found.labels == ("husky", "pug")
    assert [row.support for row in found.per_class] == [4, 5]
    rows = [*found.mistakes(), *found.surest()]
    assert len(rows) == 9
    assert all(Path(row.sample).is_file() and Path(row.sample).parent.name == row.true for row in rows)


def test_a_subset_keeps_the_names_of_the_whole(class_folder: Callable[..., Path]) -> None:
    from finetune.data.sources.base import Request
    from finetune.data.sources.folders import open_folder

    whole = open_folder(class_folder(husky=4, pug=5), Request())
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    tuner = FineTuner(model, device="cpu", preprocessing={"crop_size": 32})
    found = tuner.interpret(whole.subset([8, 1]))
    rows = {row.index: row.sample for row in [*found.mistakes(), *found.surest()]}
    assert rows == {0: whole.name(8), 1: whole.name(1)}


ONE_CLASS, CLASSES, VALUES = ("classification", "binary"), ("classification", "binary", "multilabel"), ("regression",)
NEEDED = {
    **dict.fromkeys(("confusion", "most_confused", "top1", "top5", "plot_confusion"), ONE_CLASS),
    **dict.fromkeys(("per_class", "accuracy", "surest", "roc_curves", "precision_recall_curves"), CLASSES),
    **dict.fromkeys(("reliability", "calibration_error", "score_histogram"), CLASSES),
    **dict.fromkeys(("plot_reliability", "plot_scores", "plot_curves"), CLASSES),
    **dict.fromkeys(("residuals", "per_output", "mae", "rmse", "r2", "plot_residuals"), VALUES),
    **dict.fromkeys(("mistakes", "plot_mistakes", "task", "labels"), KINDS),
}


def test_every_quantity_is_in_the_table() -> None:
    public = {name for name in dir(Interpretation) if not name.startswith("_")}
    assert public == set(NEEDED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NEEDED)
def test_a_quantity_is_there_or_names_another_that_is(kind: str, name: str) -> None:
    found = random_answers(kind, 20, 1 if kind == "binary" else 3, 0)

    def asked(quantity: str) -> Any:
        value = getattr(found, quantity)
        return value() if inspect.ismethod(value) else value

    if kind in NEEDED[name]:
        assert asked(name) is not None
        return
    with pytest.raises(ArgumentError, match=rf"^{name} is for .*, but this is a .*\. Use ") as raised:
        asked(name)
    for other in str(raised.value).rpartition("Use ")[2].strip(".").replace(" or ", ", ").split(", "):
        assert kind in NEEDED[other]
        asked(other)


@pytest.mark.parametrize("name", ["mistakes", "surest", "most_confused", "reliability", "score_histogram"])
def test_counts_are_checked(name: str) -> None:
    found = random_answers("classification", 5, 3, 0)
    with pytest.raises(ArgumentError, match=r"to be a whole number of at least 1, but got 0"):
        getattr(found, name)(0)


def test_a_class_without_samples_has_no_recall() -> None:
    tuner = FineTuner(nn.Linear(4, 4), device="cpu")
    tuner.classes = "a", "b", "c", "d"
    X, y = gaussian_blobs(30)
    row = tuner.interpret((X, y)).per_class[3]
    assert (row.name, row.support) == ("d", 0)
    assert math.isnan(row.recall)


def test_outputs_without_a_meaning_are_an_error() -> None:
    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets[:, None]).pow(4).mean()

    tuner = FineTuner(nn.Linear(4, 2), device="cpu", loss=own)
    with pytest.raises(ArgumentError):
        tuner.interpret((torch.randn(6, 4), torch.randn(6)))


def test_maps_of_classes_are_an_error() -> None:
    model = nn.Conv2d(3, 2, 1)
    tuner = FineTuner(model, device="cpu", loss="cross_entropy")
    with pytest.raises(ArgumentError, match="Expected one number per"):
        tuner.interpret((torch.randn(4, 3, 5, 5), torch.zeros(4, 5, 5).long()))


class Interprets(Callback):
    """Interprets within a run."""

    def on_epoch_end(self, run: Any) -> None:
        self.found = run.tuner.interpret(gaussian_blobs(12))


def test_it_changes_nothing() -> None:
    X, y = gaussian_blobs(30)
    runs = []
    for callback in (None, Interprets()):
        torch.manual_seed(0)
        tuner = FineTuner(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), device="cpu")
        tuner.fit((X, y), epochs=2, callbacks=callback or [], progress=False)
        runs.append([row["loss"] for row in tuner.history])
    assert runs[0] == runs[1]
