"""Augmentations by name: the table, its lookup, and a new entry used through `FineTuner`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from finetune import FineTuner
from finetune.data.preprocessing.augmentations import (
    AUGMENTATIONS,
    CacheableAugmentation,
    CropAndFlip,
    Unaugmented,
    chosen_augmentation,
)
from finetune.data.preprocessing.base import IMAGE, TEXT
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.randomness import seeded
from finetune.errors import ArgumentError
from tests.helpers.image_files import picture

SMALL = Preprocessing(crop_size=(24, 20), resize_size=32)
GREY = Preprocessing(crop_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_entry_is_bytes_of_the_crop_size_and_random(name: str) -> None:
    augment = pickle.loads(pickle.dumps(AUGMENTATIONS[name](SMALL)))
    image = picture(8, (60, 50))
    with seeded(0):
        first, second = augment(image), augment(image)
    assert first.shape == (3, 24, 20)
    assert first.dtype == torch.uint8
    assert not torch.equal(first, second)
    with seeded(0):
        assert torch.equal(augment(image), first)
    for seed in range(20):  # every operation of a policy takes grayscale images too
        with seeded(seed):
            assert AUGMENTATIONS[name](GREY)(image).shape == (1, 8, 8)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_entry_is_cacheable_and_described_by_its_name_and_what_seeds_it(name: str) -> None:
    augment = AUGMENTATIONS[name](SMALL)
    assert isinstance(augment, CacheableAugmentation)
    assert augment.stand_ins == (Unaugmented(SMALL), augment, augment, augment)
    described = {
        AUGMENTATIONS[other](SMALL).describe(*key) for other in AUGMENTATIONS for key in ((0, 1, 2), (1, 1, 2))
    }
    assert len(described) == 2 * len(AUGMENTATIONS)


def test_the_default_is_described_as_in_the_cache_folders_of_earlier_versions() -> None:
    assert CropAndFlip(SMALL).describe(3, 1, 7) == "0.35 to 1 of the area and a flip, drawn from 3, 1, 7"
    assert Unaugmented(SMALL).describe(3, 0, 7) == "as evaluated"


def test_randaugment_is_torchvisions_after_the_crop_and_flip() -> None:
    image = picture(8, (60, 50))
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop([24, 20], (0.35, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(interpolation=InterpolationMode.BILINEAR),
        ]
    )
    for seed in range(5):
        with seeded(seed):
            expected = F.pil_to_tensor(theirs(image))
        with seeded(seed):
            assert torch.equal(AUGMENTATIONS["randaugment"](SMALL)(image), expected)


def test_true_is_the_default_and_false_is_none() -> None:
    chosen = chosen_augmentation(True, SMALL, IMAGE)
    assert chosen == chosen_augmentation("crop_and_flip", SMALL, IMAGE)
    assert chosen.augment == CropAndFlip(SMALL)
    assert len(chosen.stand_ins) == 4
    assert chosen_augmentation(True, SMALL, IMAGE, views=0) == (CropAndFlip(SMALL), ())
    assert chosen_augmentation(False, SMALL, IMAGE) == (None, ())
    assert chosen_augmentation(True, None, TEXT) == (None, ())
    assert chosen_augmentation(ImageOps.invert, SMALL, IMAGE) == (ImageOps.invert, ())
    assert chosen_augmentation(CropAndFlip(SMALL), SMALL, IMAGE) == (CropAndFlip(SMALL), ())


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(
        ArgumentError,
        match=r"no augmentation 'randaug'.*Did you mean 'randaugment'.*crop_and_flip.*, or True, False or a function",
    ):
        chosen_augmentation("randaug", SMALL, IMAGE)
    with pytest.raises(ArgumentError, match="no augmentation 7"):
        chosen_augmentation(7, SMALL, IMAGE)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="takes PIL images"):
        chosen_augmentation("randaugment", None, TEXT)


# ---------------------------------------------------------------- through FineTuner


@pytest.fixture
def folder(class_folder: Callable[..., Path]) -> Path:
    return class_folder(cat=4, dog=5)


def tuner(cls: type[FineTuner] = FineTuner) -> FineTuner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return cls(model, device="cpu", preprocessing=SMALL)


class Recorder(FineTuner):
    """A tuner that records the images given to its training step."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.recorded: list[Tensor] = []

    def training_step(self, batch: Any) -> Any:
        self.recorded.append(batch[0].clone())
        return super().training_step(batch)


@dataclass(frozen=True)
class Inverted:
    """The image with its colors inverted."""

    preprocessing: Preprocessing
    uses_pixels_only = True
    stand_ins = ()

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.preprocessing.geometry(ImageOps.invert(picture))

    def describe(self, seed: int, view: int, index: int) -> str:
        return "inverted"


def test_a_new_augmentation_is_one_entry_in_the_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUGMENTATIONS, "inverted", Inverted)

    def seen(augment: Any) -> Tensor:
        recorder = tuner(Recorder)
        recorder.fit(folder, False, epochs=2, batch_size=9, augment=augment, progress=False)
        assert isinstance(recorder, Recorder)
        return torch.cat(recorder.recorded)

    inverted, plain = seen("inverted"), seen(False)
    expected = [SMALL.normalize(255 - SMALL.geometry(Image.open(path))[None]) for path in sorted(folder.rglob("*.png"))]
    assert {*map(_bytes, inverted)} == {*map(_bytes, torch.cat(expected))}
    assert not {*map(_bytes, inverted)} & {*map(_bytes, plain)}


def _bytes(picture: Tensor) -> bytes:
    return picture.numpy().tobytes()


def test_randaugment_by_name_trains_and_is_replaced_by_views_where_features_are_cached(folder: Path) -> None:
    by_name, default = tuner(), tuner()
    for one, augment in ((by_name, "randaugment"), (default, True)):
        one.freeze("0")
        one.fit(folder, False, epochs=6, batch_size=3, augment=augment, cache="memory", progress=False)
    assert by_name.history[-1]["loss"] != default.history[-1]["loss"]
    with pytest.raises(ArgumentError, match="Did you mean 'randaugment'"):
        tuner().fit(folder, augment="randaugmnt", progress=False)
    with pytest.raises(ArgumentError, match="Did you mean 'randaugment'"):
        tuner().find_lr(folder, augment="randaugmnt")
