"""Picture preprocessing as timm and Hugging Face publish it with their models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.data.preprocessing.pictures import Preprocessing
from finetune.errors import ArgumentError

_ADVICE = "Give FineTuner a Preprocessing of your own, or data that is the model's input already."


def from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """Read what `timm.data.resolve_model_data_config(model)` gives.

    The result is that of `timm.data.create_transform(**config)`, to the last bit. With an `input_size` of
    one channel, pictures are grey and normalized by the average of mean and std.

    Raises:
        ArgumentError: a number of channels other than 1 and 3, or a field that is not known here.
    """
    known = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
    unknown = sorted(key for key, value in config.items() if key not in known and value)
    channels, *size = config["input_size"]
    if unknown or channels not in (1, 3):
        what = f"the fields {', '.join(unknown)}" if unknown else f"{channels} channels"
        raise ArgumentError(f"Pictures cannot be prepared as this timm model's data config says: {what}. {_ADVICE}")
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
    """Read an image processor of transformers.

    Size, mean, std and order of the channels are measured: they are what it makes of a black, a white and
    a red picture. How it resizes is read from its settings and tried on two pictures, against which the
    result has to hold within rounding and one pixel: where a crop leaves an odd border, transformers and
    torchvision round the middle to different sides, and Perceiver's crops before it resizes.

    Raises:
        ArgumentError: what it does is no resize, centre crop and scaling by channel, as of processors that
            quantize colours, cut patches, or give pictures of different sizes.
    """
    black, white, red = (_processed(processor, Image.new("RGB", (64, 64), c)) for c in ("black", "white", "red"))
    height, width = black.shape[-2:]
    middle = (slice(None), height // 2, width // 2)  # the border may be padding
    scale = white[middle] - black[middle]
    if not (scale > 0).all():
        raise _not_representable(processor, "white is not above black")
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
    """Return what a picture is resized to before the crop, as the processor's settings say."""
    size = settings.get("size") or {}
    if name.startswith("Perceiver"):  # crops first, to the same share of the picture
        return int(settings["crop_size"]["height"])
    if not settings.get("do_resize", True):
        return None
    if settings.get("resize_short"):
        return int(settings["resize_short"])
    shortest = size.get("shortest_edge")
    if shortest is None:
        return (size["height"], size["width"]) if {"height", "width"} <= size.keys() else None
    if settings.get("crop_pct") is not None:
        # ConvNeXt's processor stretches pictures of 384 pixels and more in place of cropping them.
        stretched = shortest >= 384 and not settings.get("do_center_crop")
        return (shortest, shortest) if stretched else int(shortest / settings["crop_pct"])
    return int(256 / 224 * shortest) if name.startswith("Levit") else int(shortest)


def _processed(processor: Any, picture: Image.Image) -> torch.Tensor:
    """Return what the processor makes of one picture, [3, H, W]."""
    try:
        values = processor(picture, return_tensors="pt")["pixel_values"][0]
    except Exception as error:  # whatever it does, it is no picture that comes out
        raise _not_representable(processor, str(error)) from error
    if not isinstance(values, torch.Tensor) or values.dim() != 3 or len(values) != 3:
        shape = list(getattr(values, "shape", ()))
        raise _not_representable(processor, f"a picture becomes {shape}, which is not [3, H, W]")
    return values.float()


def _compare(processor: Any, preprocessing: Preprocessing, picture: Image.Image) -> None:
    theirs, ours = _processed(processor, picture), preprocessing.normalize(preprocessing.geometry(picture)[None])[0]
    if theirs.shape != ours.shape:
        raise _not_representable(processor, f"pictures become {list(theirs.shape)} or {list(ours.shape)}")
    levels = ((theirs - ours).abs() * 255 * torch.tensor(preprocessing.std).view(-1, 1, 1)).mean()
    one_pixel = 255 / min(preprocessing.crop_size)  # of the gradients in the picture
    if levels > 0.75 * one_pixel + 1:
        raise _not_representable(processor, f"its result differs by {levels:.0f} of 255 levels on the average")


def _gradients(size: tuple[int, int]) -> Image.Image:
    """Return a smooth picture of (width, height): red grows across, green down, blue along both."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, (across + down) / 2], 2).round().astype(np.uint8))


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    """Undo the rounding of float32: six digits are what means and stds are published with, and more."""
    return tuple(round(value, 6) + 0.0 for value in values.tolist())


def _not_representable(processor: Any, why: str) -> ArgumentError:
    return ArgumentError(f"Pictures cannot be prepared as the {type(processor).__name__} does it: {why}. {_ADVICE}")
