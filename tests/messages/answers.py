"""Messages about answers: probabilities, calibrations, and what an interpretation has."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune import FineTuner
from finetune.data.sources.labels import Meaning
from finetune.interpret.calibration import Calibration
from tests.messages.material import X, advised, case, error, fit, tuner, y

LABELS = nn.functional.one_hot(y, 3).float()
VALUES = X[:, 0]


@case("{} has the label {} twice")
def label_twice(tmp: Path) -> str:
    said = error(lambda: fit(tuner(2), (X[:2], [["dog", "dog"], ["cat"]]), val=False))
    assert Meaning().encode_several([["dog"], ["cat"]], "sample {}".format)[1] == ("cat", "dog")
    tags = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 1))  # outputs [N, C, T]
    fit(FineTuner(tags, loss="cross_entropy", device="cpu"), (X, torch.zeros(36, 4, dtype=torch.int64)), val=False)
    return said


@case("A regression has no probabilities. Call predict or classify for its values")
def probabilities_of_a_regression(tmp: Path) -> str:
    model = fit(tuner(1), (X, VALUES))
    said = error(lambda: model.predict_proba(X))
    assert len(model.classify(X)) == len(model.predict(X)) == len(X)
    return said


@case("The meaning of the outputs is unknown, so they have no probabilities")
def probabilities_of_an_unknown_task(tmp: Path) -> str:
    said = error(lambda: tuner().predict_proba(X))
    assert tuner().predict(X).shape == fit(tuner()).predict_proba(X).shape
    named = tuner()
    named.classes = ("a", "b", "c")
    assert named.predict_proba(X).sum(1).allclose(torch.ones(len(X)))
    return said


@case("The calibration has {} thresholds, but the model has {} labels. Call calibrate again")
def thresholds_of_another_model(tmp: Path) -> str:
    said = error(lambda: Calibration(1.0, (0.5, 0.5)).thresholds_for(3))
    assert len(fit(tuner(), (X, LABELS)).calibrate((X, LABELS)).classify(X)) == len(X)
    return said


@case("threshold and reject are for probabilities, but this is a regression. Omit them")
def thresholds_of_a_regression(tmp: Path) -> str:
    model = fit(tuner(1), (X, VALUES))
    said = error(lambda: model.classify(X, reject=0.5))
    model.classify(X)
    return said


@case("reject is for one class per sample, but this is a multi-label task")
def rejected_labels(tmp: Path) -> str:
    model = fit(tuner(), (X, LABELS))
    said = error(lambda: model.classify(X, reject=0.5))
    model.classify(X, threshold=0.5)
    return said


@case("A binary task has one threshold, that of {}. Pass it in place of one for {}")
def threshold_of_the_first_class(tmp: Path) -> str:
    model = fit(tuner(1), (X, (VALUES > 0).long()))
    said = error(lambda: model.classify(X, threshold={"0": 0.9}))
    label = advised(r"that of '(.+?)'", said)
    assert {answer.best for answer in model.classify(X, threshold={label: 1.0})} == {"0"}
    return said


@case("to_pandas needs pandas. Run `pip install pandas`, or call to_dicts")
def without_pandas(tmp: Path) -> str:
    answers, importing = fit(tuner()).classify(X), builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return importing(name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        said = error(answers.to_pandas)
        assert len(answers.to_dicts()) == len(X)
    return said


@case("{} is for {}, but this is a {}. Use {}")
def a_number_of_another_task(tmp: Path) -> str:
    found = fit(tuner(1), (X, VALUES)).interpret((X, VALUES))
    said = error(lambda: found.confusion)
    for name in advised(r"Use (.+)\.", said).replace(" or ", ", ").replace(" and ", ", ").split(", "):
        assert getattr(found, name.strip()) is not None
    return said


@case("The model has outputs of the shape {} per sample")
def answers_of_maps(tmp: Path) -> str:
    model, maps = FineTuner(nn.Conv2d(3, 2, 1), device="cpu"), torch.zeros(4, 3, 8, 8)
    model.fit((maps, torch.arange(256).reshape(4, 8, 8) % 2), progress=False)
    said = error(lambda: model.classify(maps))
    assert model.predict(maps).shape == model.predict_proba(maps).shape == (4, 2, 8, 8)
    return said


def convolutions(outputs: int) -> FineTuner:
    layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs)
    return FineTuner(nn.Sequential(*layers), device="cpu", loss="mse")


@case("The layer {} has no heatmap: its output has no positions of the image, or the answer does not depend on them")
def layer_without_positions(tmp: Path) -> str:
    images = torch.rand(2, 3, 8, 8)
    said = error(lambda: convolutions(1).heatmaps(images, layer="2"))
    assert convolutions(1).heatmaps(images, layer="0").layer == convolutions(1).heatmaps(images).layer == "0"
    return said


@case("The model has {} outputs per sample. Name the one to find the evidence for")
def evidence_for_several_outputs(tmp: Path) -> str:
    images = torch.rand(2, 3, 8, 8)
    said = error(lambda: convolutions(2).heatmaps(images))
    assert convolutions(2).heatmaps(images, of="0").answers == ("0", "0")
    return said
