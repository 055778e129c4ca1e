"""Preprocessing of images: geometry on the host, arithmetic on the device.

The host resizes and crops each sample to bytes. The device scales and standardizes whole batches.
Bytes cost a quarter as much as floats to collate, pin, copy and cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from finetune.data.preprocessing.base import IMAGE, InputPreprocessing
from finetune.data.preprocessing.pixels import DEEP, value_range, with_channels
from finetune.errors import ArgumentError, DataError, is_number, number, one_of, whole_number

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# The values of torchvision's `InterpolationMode`.
_INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
# Pixels of a resized image, 50 MB as RGB, above which only its center is resized.
MOST_PIXELS = 2**24
# Largest area of a crop in pixels, 200 MB as RGB: one beyond it is a mistake, or in a file from a stranger an attack.
_LARGEST_CROP = 2**26
# Share of the resized image that torchvision's presets crop: 224 of 256 pixels.
_CROP_SHARE = 224 / 256
_AUTO: Any = "auto"
_RESIZE_MODES = ("stretch", "cover", "contain")


@dataclass(frozen=True)
class Preprocessing(InputPreprocessing):
    """Deterministic preprocessing of images: resize, center-crop, scale and standardize.

    It is saved in every checkpoint.

    Attributes:
        crop_size: Height and width of the model's input, in pixels, taken from the center.
        resize_size: Length of the shorter side before the crop, in pixels, as in torchvision's
            presets, or a pair (height, width). None skips the resize. By default, 256 / 224 of the crop's longer side.
        resize_mode: How a pair is applied. "stretch" resizes to exactly that size. "cover" and
            "contain" preserve the aspect ratio, so that the image covers the pair or fits into it.
            The crop pads a smaller image with black, or with the mean color under "contain".
        mean: Mean per channel, for values in [0, 1]. Defaults to ImageNet's.
        std: Standard deviation per channel, for values in [0, 1]. Defaults to ImageNet's.
        interpolation: Interpolation of the resize, a value of torchvision's `InterpolationMode`.
        channels: Number of channels: 3 for RGB, 1 for grayscale.
        bgr: Whether the model expects the channels in BGR order. `mean` and `std` follow that order.

    Raises:
        ArgumentError: If a value is invalid.

    Example:
        >>> preprocessing = Preprocessing(crop_size=(96, 96), resize_size=110)
        >>> preprocessing.geometry(Image.new("RGB", (200, 150))).shape
        torch.Size([3, 96, 96])
    """

    crop_size: tuple[int, int] = (224, 224)
    resize_size: int | tuple[int, int] | None = _AUTO
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    interpolation: str = "bilinear"
    channels: int = 3
    resize_mode: str = "stretch"
    bgr: bool = field(default=False, kw_only=True)
    kind: ClassVar[str] = IMAGE

    def __post_init__(self) -> None:
        crop = _pair("crop_size", (self.crop_size,) * 2 if is_number(self.crop_size) else self.crop_size)
        resize = round(max(crop) / _CROP_SHARE) if self.resize_size is _AUTO else self.resize_size
        plain = {
            "crop_size": crop,
            "resize_size": _resized("resize_size", resize),
            "channels": whole_number("channels", self.channels),
            "mean": _numbers("mean", self.mean),
            "std": _numbers("std", self.std),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        self._check_fields()

    def _check_fields(self) -> None:
        if math.prod(self.crop_size) > _LARGEST_CROP:
            height, width = self.crop_size
            raise ArgumentError(
                f"Expected crop_size to have at most {_LARGEST_CROP:,} pixels, but got {height} x {width}."
            )
        one_of("interpolation", self.interpolation, _INTERPOLATIONS)
        one_of("resize_mode", self.resize_mode, _RESIZE_MODES)
        if self.channels not in (1, 3):
            raise ArgumentError(f"Expected channels to be 3 (RGB) or 1 (grayscale), but got {self.channels!r}.")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) != self.channels:
                raise ArgumentError(
                    f"Expected {name} to have one number per channel, for example {name}="
                    f"{(0.5,) * self.channels}, but got {value!r} for {self.channels} channel(s)."
                )
        if not all(0 < value <= 1 for value in self.std):
            raise _out_of_scale("std", "above 0 and at most 1", self.std)
        if not all(0 <= value <= 1 for value in self.mean):
            raise _out_of_scale("mean", "from 0 to 1", self.mean)

    def __repr__(self) -> str:
        """Return the sizes, and the other fields that differ from their defaults."""
        sizes = ("crop_size", "resize_size")
        shown = [f.name for f in fields(self) if f.name in sizes or getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the kind and the fields as JSON values.

        Example:
            >>> Preprocessing(crop_size=(96, 96)).to_dict()["crop_size"]
            [96, 96]
        """
        return {"kind": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Build a preprocessing from its fields, as `to_dict` returns them.

        Raises:
            ArgumentError: If a field is unknown or has an invalid value.

        Example:
            >>> Preprocessing.from_dict({"crop_size": 96, "resize_size": 110}).crop_size
            (96, 96)
        """
        values = {key: value for key, value in values.items() if key != "kind"}
        known = [field.name for field in fields(cls)]
        for key in values:
            one_of("Preprocessing field", key, known)
        return cls(**values)

    @classmethod
    def from_torchvision(cls, preset: Any) -> Preprocessing:
        """Convert a torchvision `ImageClassification` preset, as returned by `weights.transforms()`.

        Raises:
            ArgumentError: If the preset is of another kind, such as segmentation.

        Example:
            >>> from torchvision.models import ResNet18_Weights
            >>> Preprocessing.from_torchvision(ResNet18_Weights.DEFAULT.transforms()).resize_size
            256
        """
        try:
            crop, resize = preset.crop_size, preset.resize_size
            interpolation = preset.interpolation.value
        except AttributeError as error:
            raise ArgumentError(
                f"{type(preset).__name__} is not a torchvision ImageClassification preset. "
                "Expected the result of `weights.transforms()` for a classification model."
            ) from error
        return cls(
            crop_size=(crop[0], crop[-1]),
            resize_size=resize[0] if len(resize) == 1 else tuple(resize),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=interpolation,
        )

    def grey(self) -> Preprocessing:
        """Return the equivalent preprocessing for grayscale images.

        It gives the mean over the normalized channels of the RGB copy. Channel c of that copy is
        `(g - mean[c]) / std[c]`. The mean over c is `(g - m) / s`, where s is the harmonic mean of `std` and m is
        the mean of `mean` weighted by `1 / std`. With ImageNet's constants, each channel differs from it by a
        constant below 0.2.

        Example:
            >>> Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3).grey().mean
            (0.5,)
        """
        if self.channels == 1:
            return self
        weights = [1 / value for value in self.std]
        mean = sum(value * weight for value, weight in zip(self.mean, weights, strict=True)) / sum(weights)
        return replace(self, mean=(mean,), std=(len(weights) / sum(weights),), channels=1, bgr=False)

    def geometry(self, image: Image.Image) -> Tensor:
        """Resize and center-crop an image to uint8 [C, H, W].

        Example:
            >>> Preprocessing(crop_size=(96, 96)).geometry(Image.open("dog.png")).dtype
            torch.uint8
        """
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        image = with_channels(image, self.channels)
        if self.resize_size is not None:
            size = self._resized(image.height, image.width)
            height, width = size if len(size) == 2 else _by_shorter_side(image, size[0])
            if height * width > max(MOST_PIXELS, 4 * math.prod(self.crop_size)):
                image = self._center(image, height, width)
            else:
                image = F.resize(image, size, InterpolationMode(self.interpolation))
        if self.resize_mode == "contain":
            image = _padded(image, self.crop_size, [round(255 * mean) for mean in self.mean])
        pixels: Tensor = F.pil_to_tensor(F.center_crop(image, list(self.crop_size)))
        return pixels

    def _resized(self, height: int, width: int) -> list[int]:
        """Return the size to resize to: [height, width], or [shorter side]."""
        if not isinstance(self.resize_size, tuple):
            assert self.resize_size is not None
            return [self.resize_size]
        if self.resize_mode == "stretch":
            return list(self.resize_size)
        ratios = (height / self.resize_size[0], width / self.resize_size[1])
        ratio = min(ratios) if self.resize_mode == "cover" else max(ratios)
        return [max(1, round(height / ratio)), max(1, round(width / ratio))]

    def _center(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """Resize the part that the crop keeps of an image which would have `height` and `width`."""
        rows, columns = (
            (round((resized - side) / 2), side) if resized > side else (0, resized)
            for resized, side in zip((height, width), self.crop_size, strict=True)
        )
        down, across = image.height / height, image.width / width
        box = (columns[0] * across, rows[0] * down, sum(columns) * across, sum(rows) * down)
        filter = Image.Resampling[self.interpolation.partition("-")[0].upper()]
        return image.resize((columns[1], rows[1]), filter, box)

    def check(self, item: Any) -> None:
        """Check that the values of an image are finite.

        Raises:
            DataError: If a value is NaN or infinite.

        Example:
            >>> Preprocessing().check(Image.new("F", (4, 4)))
        """
        if isinstance(item, Image.Image) and item.mode.startswith(DEEP):
            value_range(item)

    def prepare(self, item: Image.Image) -> Tensor:
        """Prepare one image on the host. Same as `geometry`.

        Example:
            >>> Preprocessing(crop_size=(96, 96)).prepare(Image.open("dog.png")).shape
            torch.Size([3, 96, 96])
        """
        return self.geometry(item)

    def on_device(self, inputs: Any) -> Any:
        """Normalize a batch of bytes [N, C, H, W] on the device; return any other inputs unchanged.

        Example:
            >>> Preprocessing().on_device(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).dtype
            torch.float32
        """
        images = isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.dim() == 4
        return self.normalize(inputs) if images else inputs

    def is_unprepared(self, inputs: Any) -> bool:
        """Return whether float images [N, C, H, W] lie between 0 and 1, although this preprocessing shifts these.

        Example:
            >>> Preprocessing().is_unprepared(torch.rand(2, 3, 224, 224))
            True
        """
        if not (isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.dim() == 4 and inputs.numel()):
            return False
        shifts = inputs.shape[1] == self.channels and max(self.mean) > 0
        return shifts and bool(inputs.min() >= 0) and bool(inputs.max() <= 1)

    def normalize(self, images: Tensor) -> Tensor:
        """Scale uint8 [N, C, H, W] to [0, 1] and standardize each channel. Return float32.

        Raises:
            DataError: If the number of channels differs from the preprocessing's.

        Example:
            >>> preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3)
            >>> preprocessing.normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
            tensor([2., 2., 2.])
        """
        if images.shape[-3] != self.channels:  # a single channel would silently broadcast to three
            raise DataError(
                f"The images have shape {list(images.shape)}, but the preprocessing has {self.channels} channel(s). "
                f"Expected [N, {self.channels}, H, W]; convert from channels-last with X.transpose(0, 3, 1, 2)."
            )
        if self.bgr:
            images = images.flip(-3)
        mean = _per_channel(self.mean, images.device)
        std = _per_channel(self.std, images.device)
        # torchvision's order of operations, so that results agree to the last bit.
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def denormalize(self, images: Tensor) -> Tensor:
        """Return RGB or grayscale values in [0, 1], the inverse of `normalize`.

        Example:
            >>> images = torch.randint(256, (1, 3, 4, 4), dtype=torch.uint8)
            >>> preprocessing = Preprocessing()
            >>> preprocessing.denormalize(preprocessing.normalize(images)).allclose(images / 255, atol=1e-6)
            True
        """
        values = images * _per_channel(self.std, images.device) + _per_channel(self.mean, images.device)
        return values.flip(-3) if self.bgr else values


def _by_shorter_side(image: Image.Image, side: int) -> tuple[int, int]:
    """Return the height and width of an image whose shorter side is resized to `side`, as torchvision rounds them."""
    shorter = min(image.size)
    return int(side * image.height / shorter), int(side * image.width / shorter)


def _padded(image: Image.Image, size: tuple[int, int], fill: list[int]) -> Image.Image:
    """Pad an image smaller than `size` with a color; torchvision's own crop would pad with black."""
    from torchvision.transforms import functional as F

    down, across = max(0, size[0] - image.height), max(0, size[1] - image.width)
    padded: Image.Image = F.pad(image, [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2], fill)
    return padded


def _out_of_scale(name: str, expected: str, values: tuple[float, ...]) -> ArgumentError:
    """Return the error for a mean or std that is not one of values in [0, 1], most often one of bytes."""
    scaled = tuple(round(value / 255, 4) for value in values)
    of_bytes = min(values) > 0 and max(values) <= 255
    fix = f" For one of bytes, divide mean and std by 255: {name}={scaled}." if of_bytes else ""
    return ArgumentError(f"Expected {name} to be of values in [0, 1], so {expected}, but got {values}.{fix}")


@lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return constants [C, 1, 1] on a device, copied once because a copy per batch would block the host."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def _pair(name: str, size: Any) -> tuple[int, ...]:
    try:
        height, width = size
        return whole_number(name, height), whole_number(name, width)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"Expected {name} to be a positive height and width in whole pixels, but got {size!r}."
        ) from error


def _resized(name: str, size: Any) -> tuple[int, ...] | int | None:
    """Return the height and width, the shorter side, or None, in plain ints."""
    if size is None:
        return None
    return whole_number(name, size) if is_number(size) else _pair(name, size)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    try:
        return tuple(number(name, value) for value in values)
    except TypeError as error:
        raise ArgumentError(
            f"Expected {name} to have one number per channel, such as (0.5, 0.5, 0.5), but got {values!r}."
        ) from error
