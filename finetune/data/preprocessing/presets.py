"""Convert the preprocessing published with a model from the format of its library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.data.preprocessing.base import IMAGE, SOUND, TEXT, InputPreprocessing
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.sound import SoundPreprocessing
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.errors import ArgumentError, one_of

_KINDS: dict[str, type[Preprocessing | TextPreprocessing | SoundPreprocessing]] = {
    IMAGE: Preprocessing,
    TEXT: TextPreprocessing,
    SOUND: SoundPreprocessing,
}
_ADVICE = "Pass FineTuner a custom Preprocessing, or pass data that is already model input."


def preprocessing_of(preset: Any, max_positions: int | None = None) -> InputPreprocessing | None:
    """Return the preprocessing that `preset` describes.

    Args:
        preset: A preprocessing, its `to_dict`, or the fields of a `Preprocessing`; a torchvision preset;
            the dict of `timm.data.resolve_model_data_config`; a transformers tokenizer, feature
            extractor or image processor; or None. A torchvision video preset gives None as well,
            because clips come as tensors.
        max_positions: Number of tokens that a text model can take, or None if unknown.

    Raises:
        ArgumentError: If the preset is of another type, or cannot be reproduced.
    """
    if preset is None or type(preset).__name__ == "VideoClassification":
        return None
    if isinstance(preset, InputPreprocessing):
        return preset
    if isinstance(preset, Mapping):
        return from_timm(preset) if "input_size" in preset else preprocessing_from_dict(preset)
    if hasattr(preset, "model_max_length"):
        return TextPreprocessing.from_tokenizer(preset, max_positions)
    if hasattr(preset, "sampling_rate"):
        return SoundPreprocessing.from_extractor(preset)
    if hasattr(preset, "data_config"):  # transformers' wrapper of timm models
        return from_timm(preset.data_config)
    if hasattr(preset, "image_processor_type") or hasattr(preset, "image_mean"):
        return from_image_processor(preset)
    if hasattr(preset, "resize_size"):
        return Preprocessing.from_torchvision(preset)
    raise ArgumentError(
        f"{type(preset).__name__} is not a preprocessing. Expected a Preprocessing or its fields as a dict, or a "
        "transformers tokenizer, feature extractor or image processor (the matching part of a processor)."
    )


def preprocessing_from_dict(values: Mapping[str, Any]) -> InputPreprocessing:
    """Rebuild a preprocessing from its `to_dict`. Values without a kind describe images.

    Raises:
        ArgumentError: If the kind or a field is unknown, or a value is invalid.
    """
    return _KINDS[one_of("kind of preprocessing", values.get("kind", IMAGE), _KINDS)].from_dict(values)


def built_for(
    preprocessing: Preprocessing, channels: int | None = None, size: Sequence[int] | None = None
) -> Preprocessing:
    """Return the preprocessing for a model that was built for other images.

    Args:
        preprocessing: Preprocessing of RGB images.
        channels: Number of channels that the model was built for; any but 1 keeps them.
        size: Height and width that the model was built for; None keeps those of the preprocessing.

    Example:
        >>> built_for(Preprocessing(), size=(64, 64)).resize_size
        73
    """
    if size is not None and len(size) == 2 and tuple(size) != preprocessing.crop_size:
        scale = [new / old for new, old in zip(size, preprocessing.crop_size, strict=True)]
        resize = preprocessing.resize_size
        if isinstance(resize, int):  # the shorter side has to cover both sides of the crop
            resize = round(resize * max(scale))
        elif resize is not None:
            resize = (round(resize[0] * scale[0]), round(resize[1] * scale[1]))
        preprocessing = replace(preprocessing, crop_size=(size[0], size[1]), resize_size=resize)
    return preprocessing.grey() if channels == 1 else preprocessing


def from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """Convert a timm data config, as returned by `timm.data.resolve_model_data_config(model)`.

    The result equals that of `timm.data.create_transform(**config)` to the last bit. With one channel
    in `input_size`, images are grayscale and normalized by the average of mean and std.

    Raises:
        ArgumentError: If the number of channels is neither 1 nor 3, or a field is unknown.
    """
    known = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
    unknown = sorted(key for key, value in config.items() if key not in known and value)
    channels, *size = config["input_size"]
    if unknown or channels not in (1, 3):
        reason = f"the fields {', '.join(unknown)}" if unknown else f"{channels} channels"
        raise ArgumentError(f"The data config of this timm model is not supported: {reason}. {_ADVICE}")
    mode = {"squash": "stretch", "border": "contain"}.get(config.get("crop_mode") or "center", "cover")
    height, width = (math.floor(side / (config.get("crop_pct") or 0.875)) for side in size)
    shorter_side = mode == "cover" and height == width
    preprocessing = Preprocessing(
        crop_size=(size[0], size[1]),
        resize_size=height if shorter_side else (height, width),
        resize_mode="stretch" if shorter_side else mode,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        channels=len(config["mean"]),
    )
    return preprocessing.grey() if channels == 1 else preprocessing


def from_image_processor(processor: Any) -> Preprocessing:
    """Convert a transformers image processor.

    Size, mean, std and channel order are measured on a black, a white and a red image. The resize is
    read from the settings, and the result is compared with the processor's on two images. The two may
    differ by rounding and one pixel: if a crop leaves an odd border, transformers and torchvision
    round its center to different sides, and Perceiver crops before it resizes.

    Raises:
        ArgumentError: If the processor does more than resize, center-crop and scale by channel: for
            example, if it quantizes colors, cuts patches, or returns images of different sizes.
    """
    black, white, red = (_processed(processor, Image.new("RGB", (64, 64), c)) for c in ("black", "white", "red"))
    height, width = black.shape[-2:]
    middle = (slice(None), height // 2, width // 2)  # the border may be padding
    scale = white[middle] - black[middle]
    if not (scale > 0).all():
        raise _not_representable(processor, "white does not map above black")
    settings = processor.to_dict()
    resize_size = _resize_size(settings, type(processor).__name__)
    preprocessing = Preprocessing(
        crop_size=(height, width),
        resize_size=resize_size,
        mean=_rounded(-black[middle] / scale),
        std=_rounded(1 / scale),
        interpolation=Image.Resampling(settings.get("resample", Image.Resampling.BILINEAR)).name.lower(),
        bgr=bool(red[middle][-1] > black[middle][-1]),
    )
    for size in ((150, 100), (260, 380)):
        _compare(processor, preprocessing, _gradients(size))
    return preprocessing


def _resize_size(settings: Mapping[str, Any], name: str) -> int | tuple[int, int] | None:
    """Return the size before the crop according to a processor's settings."""
    size = settings.get("size") or {}
    if name.startswith("Perceiver"):  # crops first, to the same share of the image
        return int(settings["crop_size"]["height"])
    if not settings.get("do_resize", True):
        return None
    if settings.get("resize_short"):
        return int(settings["resize_short"])
    shortest = size.get("shortest_edge")
    if shortest is None:
        return (size["height"], size["width"]) if {"height", "width"} <= size.keys() else None
    if settings.get("crop_pct") is not None:
        # From 384 pixels on, ConvNeXt's processor stretches images instead of cropping them.
        stretched = shortest >= 384 and not settings.get("do_center_crop")
        return (shortest, shortest) if stretched else int(shortest / settings["crop_pct"])
    return int(256 / 224 * shortest) if name.startswith("Levit") else int(shortest)


def _processed(processor: Any, image: Image.Image) -> torch.Tensor:
    """Return the processor's result for one image, [3, H, W]."""
    try:
        values = processor(image, return_tensors="pt")["pixel_values"][0]
    except Exception as error:  # any failure means that the result is not an image
        raise _not_representable(processor, str(error)) from error
    if not isinstance(values, torch.Tensor) or values.dim() != 3 or len(values) != 3:
        shape = list(getattr(values, "shape", ()))
        raise _not_representable(processor, f"an image becomes {shape} instead of [3, H, W]")
    return values.float()


def _compare(processor: Any, preprocessing: Preprocessing, image: Image.Image) -> None:
    theirs, ours = _processed(processor, image), preprocessing.normalize(preprocessing.geometry(image)[None])[0]
    if theirs.shape != ours.shape:
        raise _not_representable(processor, f"images become {list(theirs.shape)} instead of {list(ours.shape)}")
    levels = ((theirs - ours).abs() * 255 * torch.tensor(preprocessing.std).view(-1, 1, 1)).mean()
    one_pixel = 255 / min(preprocessing.crop_size)  # difference of neighboring pixels in the gradients
    if levels > 0.75 * one_pixel + 1:
        raise _not_representable(processor, f"its result differs by {levels:.0f} of 255 levels on average")


def _gradients(size: tuple[int, int]) -> Image.Image:
    """Return a smooth image of (width, height): red increases across, green down, blue along both."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, (across + down) / 2], 2).round().astype(np.uint8))


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    """Return float32 values rounded to six digits, as precise as published means and stds."""
    return tuple(float(f"{value:.6g}") + 0.0 for value in values.tolist())


def _not_representable(processor: Any, why: str) -> ArgumentError:
    return ArgumentError(f"{type(processor).__name__} cannot be reproduced: {why}. {_ADVICE}")
