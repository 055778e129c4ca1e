"""No preprocessing is made up for a model that was trained without one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from finetune import DataError, FineTuner, Preprocessing
from finetune.data.preprocessing.base import IMAGE, TEXT
from finetune.data.preprocessing.provenance import ASSUMED, GIVEN, PUBLISHED, READY, Provenance, chosen_preprocessing

SIZE, LEVELS = 20, (30, 110, 200)
PLAIN = Preprocessing(crop_size=SIZE, resize_size=SIZE, mean=(0.0,) * 3, std=(1.0,) * 3)
X = torch.stack([torch.full((3, SIZE, SIZE), level / 255) for level in LEVELS * 4])
Y = torch.arange(12) % 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def trained(data: Any = (X, Y), **settings: Any) -> FineTuner:
    tuner = FineTuner(net(), device="cpu", **settings)
    tuner.fit(data, val=False, epochs=1, progress=False)
    return tuner


def image(index: int = 0) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), (LEVELS[index % 3],) * 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(6):
        path = tmp_path / "images" / "abc"[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image(index).save(path)
    return tmp_path / "images"


class Images(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return image(index), index


QUESTIONS: dict[str, Callable[[FineTuner, Path], Any]] = {
    "a file": lambda tuner, folder: tuner.predict(folder / "a" / "0.png"),
    "a folder": lambda tuner, folder: tuner.predict(folder),
    "images": lambda tuner, folder: tuner.predict([image()]),
    "a dataset of images": lambda tuner, folder: tuner.predict(Images()),
    "evaluate a folder": lambda tuner, folder: tuner.evaluate(folder),
    "evaluate a pair": lambda tuner, folder: tuner.evaluate(([str(folder / "b" / "1.png")], [1])),
    "texts": lambda tuner, folder: tuner.predict(["a text", "another"]),
    "training on a folder": lambda tuner, folder: tuner.fit(folder, progress=False),
    "validation": lambda tuner, folder: tuner.fit((X, Y), folder, progress=False),
    "after loading": lambda tuner, folder: FineTuner.load_checkpoint(
        tuner.save_checkpoint(folder.parent / "saved"), net(), device="cpu"
    ).predict(folder),
    "training after loading": lambda tuner, folder: FineTuner.load_checkpoint(
        tuner.save_checkpoint(folder.parent / "saved"), net(), device="cpu"
    ).fit(folder, progress=False),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_raw_items_are_refused_after_training_on_arrays(question: str, folder: Path) -> None:
    tuner = trained()
    tuner.classes = ("a", "b", "c")
    with pytest.raises(DataError, match="trained on inputs that were ready"):
        QUESTIONS[question](tuner, folder)


@pytest.mark.parametrize(
    "data",
    [
        (X.numpy(), Y.numpy()),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=4),
        [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    ],
    ids=["numpy", "dataset", "loader", "list"],
)
def test_every_form_of_ready_inputs_counts(data: Any, folder: Path) -> None:
    with pytest.raises(DataError, match="trained on inputs that were ready"):
        trained(data).predict(folder)


def test_the_advice_gives_the_same_outputs_as_the_arrays(folder: Path) -> None:
    tuner = trained()
    expected = tuner.predict(X[:1])
    path = tuner.save_checkpoint(folder.parent / "saved")
    loaded = FineTuner.load_checkpoint(path, net(), preprocessing=PLAIN, device="cpu")
    tuner.preprocessing = PLAIN
    again = FineTuner(tuner.model, preprocessing=PLAIN, device="cpu")
    for each in (loaded, tuner, again):
        assert torch.allclose(each.predict(folder / "a" / "0.png"), expected)


def test_what_was_assumed_for_a_question_is_forgotten_by_training_on_arrays(folder: Path) -> None:
    tuner = FineTuner(net(), device="cpu")
    assert len(tuner.predict(folder)) == 6
    tuner.fit((X, Y), progress=False)
    assert tuner.preprocessing is None
    with pytest.raises(DataError, match="trained on inputs that were ready"):
        tuner.predict(folder)


def test_arrays_are_fine_after_training_on_images(folder: Path) -> None:
    tuner = trained(
        folder,
        preprocessing=PLAIN,
    )
    assert torch.allclose(tuner.predict(X[:1]), tuner.predict(folder / "a" / "0.png"))
    tuner.fit((X, Y), progress=False)
    assert len(tuner.predict(folder)) == 6


def test_bytes_are_prepared_as_images_are(folder: Path) -> None:
    tuner = trained(folder, preprocessing=PLAIN)
    pixels = np.full((1, 3, SIZE, SIZE), LEVELS[0], np.uint8)
    assert torch.allclose(tuner.predict(pixels), tuner.predict(folder / "a" / "0.png"))


def test_a_preprocessing_of_the_user_is_not_questioned(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(trained(preprocessing=PLAIN).predict(folder)) == 6
    assert "ready" not in caplog.text


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict", "validate", "fit a loader"])
def test_floats_that_images_would_be_normalized_from_are_said(
    verb: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuner = FineTuner(net(), device="cpu", preprocessing=replace(PLAIN, mean=(0.5,) * 3, std=(0.5,) * 3))
    unit, verbs = torch.rand(6, 3, SIZE, SIZE), {
        "fit": lambda X: tuner.fit((X, Y[:6]), progress=False),
        "evaluate": lambda X: tuner.evaluate((X, Y[:6])),
        "predict": tuner.predict,
        "validate": lambda X: tuner.fit(folder, (X, Y[:6]), progress=False),
        "fit a loader": lambda X: tuner.fit(DataLoader(TensorDataset(X, Y[:6]), batch_size=3), progress=False),
    }  # fmt: skip
    if verb != "fit a loader":
        verbs[verb]((255 * unit).round().to(torch.uint8))
    verbs[verb](unit * 2 - 1)
    assert "between 0 and 1" not in caplog.text
    verbs[verb](unit)
    assert caplog.text.count("inputs are floats between 0 and 1") == 1


def test_a_published_preprocessing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    seen = Provenance(PUBLISHED).after_training_on(None)
    assert seen.trained_on == READY
    with caplog.at_level(logging.WARNING, "finetune"):
        assert chosen_preprocessing(IMAGE, PLAIN, seen, Preprocessing) == (PLAIN, seen)
    assert "prepared as published with its weights: Preprocessing(crop_size=(20, 20)" in caplog.text


@pytest.mark.parametrize(
    ("kind", "known", "expected"),
    [(IMAGE, None, Preprocessing()), (IMAGE, PLAIN, PLAIN), (None, None, None), (TEXT, None, None)],
)
def test_only_images_without_a_preprocessing_get_one(
    kind: str | None, known: Preprocessing | None, expected: Preprocessing | None
) -> None:
    found, provenance = chosen_preprocessing(kind, known, Provenance(GIVEN), Preprocessing)
    assert found == expected
    assert provenance.origin == (GIVEN if found is known else ASSUMED)


def test_a_model_states_the_size_of_its_images() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    model.image_size = 24
    tuner = FineTuner(model, device="cpu")
    outputs: Tensor = tuner.predict([image()])
    assert outputs.shape == (1, 3)
    assert isinstance(tuner.preprocessing, Preprocessing)
    assert (tuner.preprocessing.channels, tuner.preprocessing.crop_size) == (1, (24, 24))
