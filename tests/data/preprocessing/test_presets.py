"""Preprocessing published with a model is converted to an equal one of this library."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import ResNet18_Weights
from torchvision.models.video import R3D_18_Weights

from finetune import FineTuner
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.presets import preprocessing_from_dict, preprocessing_of
from finetune.errors import ArgumentError
from tests.helpers.image_files import picture

SIZES = ((40, 32), (31, 57), (64, 64), (20, 90))


def prepared(preprocessing: Any, image: Image.Image) -> torch.Tensor:
    return preprocessing.on_device(preprocessing.prepare(image)[None])[0]


# ---------------------------------------------------------------- own and torchvision's


def test_torchvision_presets() -> None:
    preset = ResNet18_Weights.DEFAULT.transforms()
    made = preprocessing_of(preset)
    assert made == Preprocessing.from_torchvision(preset)
    assert torch.equal(prepared(made, picture(1, (300, 400))), preset(picture(1, (300, 400))))
    assert preprocessing_of(R3D_18_Weights.DEFAULT.transforms()) is None
    assert preprocessing_of(None) is None


def test_dicts_of_every_version() -> None:
    made = Preprocessing(crop_size=(8, 8), resize_size=(10, 12), resize_mode="contain", bgr=True)
    assert made.to_dict()["kind"] == "picture"
    assert preprocessing_from_dict(made.to_dict()) == preprocessing_of(made.to_dict()) == preprocessing_of(made) == made
    old = {"crop_size": [8, 8], "resize_size": 9, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    assert preprocessing_from_dict(old) == Preprocessing((8, 8), 9, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ArgumentError, match=r"no kind of preprocessing 'smell'.*Expected one of picture, text"):
        preprocessing_from_dict({"kind": "smell"})
    with pytest.raises(ArgumentError, match="int is not a preprocessing"):
        FineTuner(torch.nn.Linear(2, 2), preprocessing=7)


def test_bgr_reverses_the_channels() -> None:
    rgb, bgr = (Preprocessing((8, 8), 9, (0.1, 0.2, 0.3), (0.2, 0.4, 0.6), bgr=turn) for turn in (False, True))
    image = picture(3)
    turned = Image.merge("RGB", image.split()[::-1])
    assert torch.equal(prepared(bgr, image), prepared(rgb, turned))


# ---------------------------------------------------------------- timm


@settings(max_examples=40)
@given(
    st.sampled_from(["center", "squash", "border"]),
    st.sampled_from([0.5, 0.8, 0.875, 0.9, 0.95, 1.0]),
    st.sampled_from(["bicubic", "bilinear"]),
    st.tuples(st.integers(12, 40), st.integers(12, 40)) | st.integers(12, 40).map(lambda side: (side, side)),
    st.sampled_from(SIZES),
)
def test_timm_data_configs_to_the_last_bit(
    mode: str, crop_pct: float, interpolation: str, size: tuple[int, int], of: tuple[int, int]
) -> None:
    timm = pytest.importorskip("timm")
    config = {
        "input_size": (3, *size), "interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": mode,
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    }  # fmt: skip
    theirs = timm.data.create_transform(**config, is_training=False)(picture(1, of))
    assert torch.equal(prepared(preprocessing_of(config), picture(1, of)), theirs)


def test_data_configs_of_timm_models() -> None:
    timm = pytest.importorskip("timm")
    for name in ("resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"):
        config = timm.data.resolve_model_data_config(timm.create_model(name))
        theirs = timm.data.create_transform(**config, is_training=False)(picture(1, (300, 260)))
        assert torch.equal(prepared(preprocessing_of(config), picture(1, (300, 260))), theirs)
    grey = preprocessing_of({**config, "input_size": (1, 32, 32)})
    assert prepared(grey, picture(1)).shape == (1, 32, 32)
    with pytest.raises(ArgumentError, match="5 channels"):
        preprocessing_of({**config, "input_size": (5, 32, 32)})
    with pytest.raises(ArgumentError, match="crop_border_pixels"):
        preprocessing_of({**config, "crop_border_pixels": 3})


# ---------------------------------------------------------------- Hugging Face

SMALL = {"size": {"height": 30, "width": 30}}
CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
PROCESSORS: list[tuple[str, str, dict[str, Any]]] = [
    ("vit", "ViT", SMALL),
    ("vit", "ViT", {**SMALL, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}),
    ("vit", "ViT", {**SMALL, "do_normalize": False}),
    ("vit", "ViT", {**SMALL, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}),
    ("vit", "ViT", {**SMALL, "do_rescale": False, "do_normalize": False}),
    ("beit", "Beit", SMALL),
    ("beit", "Beit", {**SMALL, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}}),
    ("deit", "DeiT", {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}),
    ("bit", "Bit", CROPPED),
    ("clip", "CLIP", CROPPED),
    ("convnext", "ConvNext", {"size": {"shortest_edge": 56}}),
    ("convnext", "ConvNext", {}),
    ("mobilenet_v1", "MobileNetV1", CROPPED),
    ("mobilenet_v2", "MobileNetV2", CROPPED),
    ("efficientnet", "EfficientNet", SMALL),
    ("efficientnet", "EfficientNet", {**SMALL, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("levit", "Levit", {}),
    ("poolformer", "PoolFormer", {}),
    ("mobilevit", "MobileViT", {}),
    ("mobilevit", "MobileViT", CROPPED),
    ("pvt", "Pvt", SMALL),
    ("segformer", "Segformer", SMALL),
    ("siglip", "Siglip", SMALL),
]


@pytest.mark.parametrize(("family", "name", "options"), PROCESSORS)
@pytest.mark.parametrize("size", [(64, 48), (48, 96)])
def test_image_processors(family: str, name: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    pytest.importorskip("transformers")
    module = importlib.import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    processor = getattr(module, f"{name}ImageProcessorPil")(**options)
    theirs = processor(picture(1, size), return_tensors="pt")["pixel_values"][0].float()
    torch.testing.assert_close(prepared(preprocessing_of(processor), picture(1, size)), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["ViT", "ConvNext", "Bit", "MobileNetV2", "EfficientNet", "PPLCNet"])
def test_image_processors_that_resize_tensors_differ_by_rounding(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{name}ImageProcessor")()
    made: Any = preprocessing_of(processor)
    smooth = picture(1, (12, 10)).resize((320, 256), Image.Resampling.BICUBIC)  # crops of even borders
    levels = (prepared(made, smooth) - processor(smooth, return_tensors="pt")["pixel_values"][0]).abs() * 255
    assert float((levels * torch.tensor(made.std).view(-1, 1, 1)).max()) < 2.5


def test_perceiver_is_close() -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.PerceiverImageProcessor()
    smooth = picture(1, (4, 4)).resize((300, 300), Image.Resampling.BICUBIC)
    ours = prepared(preprocessing_of(processor), smooth)
    assert float((ours - processor(smooth, return_tensors="pt")["pixel_values"][0]).abs().mean()) < 0.02


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Siglip2", r"becomes \[256, 768\]"),
        ("TextNet", "images become"),
        ("Donut", "differs by"),
        ("ImageGPT", "Clusters must be provided"),
    ],
)
def test_processors_that_cannot_be_reproduced_are_refused(name: str, why: str) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(
        ArgumentError, match=f"{name}ImageProcessor cannot be reproduced: .*{why}.*a custom Preprocessing"
    ):
        preprocessing_of(getattr(transformers, f"{name}ImageProcessor")())


def test_a_processor_that_mixes_scales_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ArgumentError, match=r"values in \[0, 1\]"):
        preprocessing_of(transformers.ViTImageProcessor(image_mean=[127.5] * 3, image_std=[127.5] * 3))


def test_the_timm_wrapper_of_transformers() -> None:
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    config = timm.get_pretrained_cfg("resnet18").to_dict()
    wrapper = transformers.models.timm_wrapper.TimmWrapperImageProcessor(config, "resnet18")
    theirs = wrapper(picture(1), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(prepared(preprocessing_of(wrapper), picture(1)), theirs)
