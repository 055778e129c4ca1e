"""Preprocessing of images: equal to torchvision bit for bit, checked, and saved as a dict."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import models
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification, VideoClassification

from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.pixels import with_channels
from finetune.errors import ArgumentError
from tests.helpers.image_files import picture

PIL_MODES = list(InterpolationMode)


def same_as_preset(preset: ImageClassification, image: Image.Image) -> None:
    ours = Preprocessing.from_torchvision(preset)
    expected = preset(with_channels(image, 3))
    assert torch.equal(ours.normalize(ours.geometry(image)[None])[0], expected)


@pytest.mark.parametrize("mode", PIL_MODES)
@pytest.mark.parametrize("size", [(40, 30), (25, 61), (224, 224), (301, 199)])
def test_equal_to_torchvision_for_every_interpolation(mode: InterpolationMode, size: tuple[int, int]) -> None:
    same_as_preset(ImageClassification(crop_size=32, resize_size=37, interpolation=mode), picture(1, size))


@pytest.mark.parametrize(
    "weights",
    [
        models.ResNet18_Weights.IMAGENET1K_V1,
        models.ResNet50_Weights.IMAGENET1K_V2,
        models.EfficientNet_B0_Weights.IMAGENET1K_V1,
        models.EfficientNet_V2_L_Weights.IMAGENET1K_V1,
        models.Inception_V3_Weights.IMAGENET1K_V1,
        models.ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1,
        models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
    ],
)
def test_equal_to_torchvision_for_real_presets(weights: models.WeightsEnum) -> None:
    same_as_preset(weights.transforms(), picture(2, (260, 180)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 50), st.integers(1, 50))
def test_equal_to_torchvision_for_any_size(width: int, height: int, crop: int, resize: int) -> None:
    same_as_preset(ImageClassification(crop_size=crop, resize_size=resize), picture(3, (width, height)))


def test_exact_resize_none_and_grey() -> None:
    image = picture(4, (50, 40))
    assert Preprocessing(crop_size=(20, 30), resize_size=(20, 30)).geometry(image).shape == (3, 20, 30)
    untouched = Preprocessing(crop_size=(40, 50), resize_size=None).geometry(image)
    assert np.array_equal(untouched.permute(1, 2, 0), np.asarray(image))
    grey = Preprocessing(crop_size=(8, 8), resize_size=8, channels=1, mean=(0.5,), std=(0.25,))
    result = grey.normalize(grey.geometry(image)[None])
    assert result.shape == (1, 1, 8, 8)
    assert result.dtype == torch.float32
    assert grey.normalize(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)).item() == 2.0


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "YCbCr", "1", "F", "HSV"])
def test_every_mode_becomes_rgb_and_grey(mode: str) -> None:
    image = picture(5, mode="RGB").convert(mode)
    assert with_channels(image, 3).mode == "RGB"
    assert with_channels(image, 1).mode == "L"
    same_as_preset(ImageClassification(crop_size=16, resize_size=20), image)


def test_round_trip_through_json() -> None:
    for made in (
        Preprocessing(),
        Preprocessing(crop_size=(3, 5), resize_size=(4, 6), interpolation="bicubic"),
        Preprocessing(channels=1, mean=(0.1,), std=(0.3,), resize_size=None),
    ):
        assert Preprocessing.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_an_int_crop_is_square() -> None:
    assert Preprocessing.from_dict({"crop_size": 96}).crop_size == (96, 96)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": 224}, "no Preprocessing field 'crop'.*Did you mean 'crop_size'"),
        ({"crop_size": [224]}, "crop_size"),
        ({"crop_size": -1}, "crop_size"),
        ({"crop_size": "large"}, "crop_size"),
        ({"crop_size": (224.5, 224)}, "crop_size"),
        ({"resize_size": 0}, "resize_size"),
        ({"resize_size": (256, -1)}, "resize_size"),
        ({"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, r"std to be of values in \[0, 1\]"),
        ({"mean": (123.7, 116.3, 103.5)}, r"mean to be of values in \[0, 1\].*mean=\(0.4851"),
        ({"mean": (0.5, 0.5, 1.5)}, r"mean to be of values in \[0, 1\]"),
        ({"mean": (0.5, 0.5, -0.5)}, r"mean to be of values in \[0, 1\]"),
        ({"std": (58.4, 57.1, 57.4)}, r"std to be of values in \[0, 1\].*divide mean and std by 255"),
        ({"std": (0.2, 0.2, -0.2)}, r"std to be of values in \[0, 1\]"),
        ({"std": (0.2, 0.2, float("nan"))}, "std"),
        ({"crop_size": [0, 5]}, "crop_size"),
        ({"crop_size": 8193}, "at most 67,108,864 pixels, but got 8193 x 8193"),
        ({"crop_size": [1, 10**9]}, "at most 67,108,864 pixels"),
        ({"resize_size": -1}, "resize_size"),
        ({"resize_size": [1, 2, 3]}, "resize_size"),
        ({"interpolation": "bilinaer"}, "Did you mean 'bilinear'"),
        ({"channels": 2}, "channels"),
        ({"mean": [0.5]}, "mean"),
        ({"std": 0.5}, "std"),
        ({"std": [0.5, 0.0, 0.5]}, "std"),
        ({"channels": 1}, "to have one number per channel"),
    ],
)
def test_bad_fields_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Preprocessing.from_dict(values)


def test_other_presets_are_refused() -> None:
    with pytest.raises(ArgumentError, match="Identity is not a torchvision ImageClassification preset"):
        Preprocessing.from_torchvision(torch.nn.Identity())
    video = VideoClassification(crop_size=(112, 112), resize_size=(128, 171))
    assert Preprocessing.from_torchvision(video).resize_size == (128, 171)


def test_constants_made_in_inference_mode_can_be_used_in_training() -> None:
    preprocessing = Preprocessing(mean=(0.11, 0.12, 0.13))
    pictures = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    with torch.inference_mode():
        preprocessing.normalize(pictures)
    weight = torch.ones(1, requires_grad=True)
    (preprocessing.normalize(pictures) * weight).sum().backward()
    assert weight.grad is not None


def resized_whole(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    size = preprocessing._resized(image.height, image.width)
    resized = F.resize(image, size, InterpolationMode(preprocessing.interpolation))
    result: torch.Tensor = F.pil_to_tensor(F.center_crop(resized, list(preprocessing.crop_size)))
    return result


SETTINGS: list[dict[str, Any]] = [
    {"crop_size": 64, "resize_size": 80},
    {"crop_size": 64, "resize_size": (80, 96), "resize_mode": "cover"},
    {"crop_size": (48, 64), "resize_size": 64, "interpolation": "bicubic"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", [(9000, 2), (2, 9000), (8001, 3), (400_000, 30), (3000, 1), (40, 32)])
def test_a_long_image_is_cropped_before_it_is_resized(settings: dict[str, Any], size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(**settings)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    difference = (preprocessing.geometry(image).int() - resized_whole(preprocessing, image).int()).abs()
    assert difference.float().mean() < 1.5  # noise that is shifted by a pixel differs by 3 and more


@pytest.mark.parametrize("size", [(5000, 1), (1, 60_000)])
def test_a_line_takes_little_memory(size: tuple[int, int]) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert Preprocessing().geometry(Image.new("RGB", size)).shape == (3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_the_advice_on_bytes_scales_them_as_published() -> None:
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    with pytest.raises(ArgumentError, match="divide mean and std by 255"):
        Preprocessing(mean=mean, std=std)
    made = Preprocessing(mean=tuple(m / 255 for m in mean), std=tuple(s / 255 for s in std))
    assert made.mean == pytest.approx(Preprocessing().mean)
    assert made.std == pytest.approx(Preprocessing().std)


@pytest.mark.parametrize(
    ("crop", "resize"), [(224, 256), ((224, 224), 256), (384, 439), (32, 37), ((64, 32), 73), (8, 9)]
)
def test_the_resize_follows_the_crop(crop: int | tuple[int, int], resize: int) -> None:
    made = Preprocessing(crop_size=crop)  # type: ignore[arg-type]
    assert made.resize_size == resize
    assert Preprocessing.from_dict(made.to_dict()) == made


def test_the_representation_is_short() -> None:
    assert repr(Preprocessing()) == "Preprocessing(crop_size=(224, 224), resize_size=256)"
    assert repr(Preprocessing(crop_size=8, bgr=True)) == "Preprocessing(crop_size=(8, 8), resize_size=9, bgr=True)"
    grey = repr(Preprocessing(mean=(0.5,), std=(0.5,), channels=1))
    assert grey == "Preprocessing(crop_size=(224, 224), resize_size=256, mean=(0.5,), std=(0.5,), channels=1)"
