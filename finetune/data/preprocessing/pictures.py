"""How a picture becomes the model's input.

It happens in two halves. The geometry (resize, crop) is done on the host, sample by sample, and
gives bytes; the arithmetic (scale, mean, std) is done on the device, batch by batch. Bytes are a
quarter of what floats cost to collate, pin, copy and cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from finetune.data.preprocessing.base import PICTURE, InputPreprocessing
from finetune.data.sources.picture_files import with_channels
from finetune.errors import ArgumentError, DataError, nearest

if TYPE_CHECKING:
    from torchvision.transforms import v2

Augmentation = Callable[[Image.Image], "Image.Image | Tensor"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Crops down to 8 % of the area are for training from scratch through hundreds of epochs. A few
# epochs on a pretrained model learn more from crops that still show the object: fastai takes 35 %.
_LEAST_AREA = 0.35
# The values of torchvision's `InterpolationMode`.
_INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
_RESIZE_MODES = ("stretch", "cover", "contain")


@dataclass(frozen=True)
class Preprocessing(InputPreprocessing):
    """The deterministic way from a picture to the model's input; travels in every checkpoint.

    Attributes:
        crop_size: height and width of the input, pixels; the centre is kept.
        resize_size: the shorter side before the crop, pixels, as in torchvision's presets; a pair is a
            (height, width); None leaves the size alone.
        resize_mode: what a pair means. "stretch" makes it the exact size; "cover" and "contain" keep the
            ratio of the sides, so that the picture covers the pair or fits into it. What a picture
            lacks to the crop is black, with "contain" the mean colour.
        mean: per channel, of values in [0, 1]. The default is ImageNet's.
        std: per channel, of values in [0, 1]. The default is ImageNet's.
        interpolation: a value of torchvision's `InterpolationMode`, as "bilinear".
        channels: 3 for RGB, 1 for grey.
        bgr: the model expects the channels in the opposite order; mean and std are in the model's.

    Raises:
        ArgumentError: a value that cannot work.
    """

    crop_size: tuple[int, int] = (224, 224)
    resize_size: int | tuple[int, int] | None = 256
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    interpolation: str = "bilinear"
    channels: int = 3
    resize_mode: str = "stretch"
    bgr: bool = field(default=False, kw_only=True)
    kind: ClassVar[str] = PICTURE

    def __post_init__(self) -> None:
        for name in ("crop_size", "resize_size", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list):  # JSON and torchvision's presets have lists
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.crop_size, int):
            object.__setattr__(self, "crop_size", (self.crop_size, self.crop_size))
        self._check()

    def _check(self) -> None:
        _check_size("crop_size", self.crop_size)
        if isinstance(self.resize_size, tuple):
            _check_size("resize_size", self.resize_size)
        elif self.resize_size is not None:
            _check_size("resize_size", (self.resize_size, self.resize_size))
        if self.interpolation not in _INTERPOLATIONS:
            raise ArgumentError(
                f"interpolation is {self.interpolation!r}; it can be {', '.join(_INTERPOLATIONS)}."
                + nearest(str(self.interpolation), _INTERPOLATIONS)
            )
        if self.resize_mode not in _RESIZE_MODES:
            raise ArgumentError(f"resize_mode is {self.resize_mode!r}; it can be {', '.join(_RESIZE_MODES)}.")
        if self.channels not in (1, 3):
            raise ArgumentError(f"channels is {self.channels!r}; it can be 3 (RGB) or 1 (grey).")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != self.channels:
                raise ArgumentError(
                    f"{name} is {value!r} for {self.channels} channel(s). "
                    f"Give one number a channel, as {name}={(0.5,) * self.channels}."
                )
        if not all(value > 0 for value in self.std):
            raise ArgumentError(f"std is {self.std}; every value has to be above zero.")

    def to_dict(self) -> dict[str, Any]:
        """Return the kind and the fields as JSON has them: numbers, strings and lists."""
        return {"kind": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Rebuild what `to_dict` gave. Raises ArgumentError for a field there is not, or a bad value."""
        values = {key: value for key, value in values.items() if key != "kind"}
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ArgumentError(
                    f"Preprocessing has no field {key!r}; its fields are {', '.join(known)}." + nearest(str(key), known)
                )
        return cls(**values)

    @classmethod
    def from_torchvision(cls, preset: Any) -> Preprocessing:
        """Read an `ImageClassification` preset, as `weights.transforms()` of torchvision gives it.

        Raises:
            ArgumentError: another kind of preset (video, segmentation).
        """
        try:
            crop, resize = preset.crop_size, preset.resize_size
            interpolation = preset.interpolation.value
        except AttributeError as error:
            raise ArgumentError(
                f"{type(preset).__name__} is not a torchvision ImageClassification preset; "
                "expected what `weights.transforms()` of a classification model gives."
            ) from error
        return cls(
            crop_size=(crop[0], crop[-1]),
            resize_size=resize[0] if len(resize) == 1 else tuple(resize),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=interpolation,
        )

    def grey(self) -> Preprocessing:
        """Return the same for grey pictures: with the mean over the channels of a grey picture's RGB copy.

        Channel c of the copy is `(g - mean[c]) / std[c]`; their mean is `(g - m) / s` with s the harmonic
        mean of `std` and m that of `mean` weighted by `1 / std`. Where all channels have one mean and std,
        that is each of them; with ImageNet's, channels differ from it by a constant below 0.2.
        """
        if self.channels == 1:
            return self
        weights = [1 / value for value in self.std]
        mean = sum(value * weight for value, weight in zip(self.mean, weights, strict=True)) / sum(weights)
        return replace(self, mean=(mean,), std=(len(weights) / sum(weights),), channels=1, bgr=False)

    def geometry(self, picture: Image.Image) -> Tensor:
        """Resize and centre-crop a picture. Returns uint8 [C, H, W]."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        picture = with_channels(picture, self.channels)
        if self.resize_size is not None:
            size = self._resized(picture.height, picture.width)
            picture = F.resize(picture, size, InterpolationMode(self.interpolation))
        if self.resize_mode == "contain":
            picture = _padded(picture, self.crop_size, [round(255 * mean) for mean in self.mean])
        return _as_bytes(F.center_crop(picture, list(self.crop_size)))

    def _resized(self, height: int, width: int) -> list[int]:
        """Return the size that a picture is resized to: height and width, or the shorter side alone."""
        if not isinstance(self.resize_size, tuple):
            assert self.resize_size is not None
            return [self.resize_size]
        if self.resize_mode == "stretch":
            return list(self.resize_size)
        ratios = (height / self.resize_size[0], width / self.resize_size[1])
        ratio = min(ratios) if self.resize_mode == "cover" else max(ratios)
        return [max(1, round(height / ratio)), max(1, round(width / ratio))]

    def prepare(self, item: Image.Image) -> Tensor:
        return self.geometry(item)

    def on_device(self, inputs: Any) -> Any:
        """Normalize bytes [N, C, H, W]; floats are final."""
        pictures = isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.dim() == 4
        return self.normalize(inputs) if pictures else inputs

    def normalize(self, pictures: Tensor) -> Tensor:
        """Scale uint8 [N, C, H, W] to [0, 1] and standardize it, on its device. Returns float32.

        Raises:
            DataError: another number of channels.
        """
        if pictures.shape[-3] != self.channels:  # one channel would broadcast to three in silence
            raise DataError(
                f"The pictures have shape {list(pictures.shape)} and the preprocessing {self.channels} channel(s). "
                f"Expected [N, {self.channels}, H, W]; from channels-last, X.transpose(0, 3, 1, 2)."
            )
        if self.bgr:
            pictures = pictures.flip(-3)
        mean = _per_channel(self.mean, pictures.device)
        std = _per_channel(self.std, pictures.device)
        # The order of operations is torchvision's, so that the result is too, to the last bit.
        return pictures.to(torch.float32).div_(255).sub_(mean).div_(std)


@dataclass(frozen=True)
class StandardAugmentation:
    """A random crop of random size, and a horizontal flip. Made by `standard_augmentation`."""

    preprocessing: Preprocessing

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return uint8 [C, H, W] of the preprocessing's crop size."""
        picture = with_channels(picture, self.preprocessing.channels)
        return _as_bytes(_crop_and_flip(self.preprocessing)(picture))

    def describe(self, seed: int, view: int, index: int) -> str:
        """Say what decides the picture of a sample in a view, with the seed of the run."""
        return f"{_LEAST_AREA} to 1 of the area and a flip, drawn from {seed}, {view}, {index}"

    @property
    def stand_ins(self) -> tuple[Unaugmented | StandardAugmentation, ...]:
        """What takes its place where the pictures of all epochs are few, as what follows from them is stored.

        Among four views, one that looks as in evaluation makes up for the variety that four lack.
        """
        return Unaugmented(self.preprocessing), self, self, self


@dataclass(frozen=True)
class Unaugmented:
    """The picture as it is evaluated: an augmentation that changes and draws nothing."""

    preprocessing: Preprocessing

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return uint8 [C, H, W] of the preprocessing's crop size."""
        return self.preprocessing.geometry(picture)

    def describe(self, seed: int, view: int, index: int) -> str:
        """Say what decides its pictures: nothing that is drawn."""
        return "as evaluated"


def mixing(alpha: float, cutmix: float, num_classes: int) -> v2.Transform:
    """Return what mixes the pictures [N, C, H, W] of a batch and their labels, by mixup, CutMix, or one by chance."""
    from torchvision.transforms import v2

    chosen: list[v2.Transform] = []
    if alpha > 0:
        chosen.append(v2.MixUp(alpha=alpha, num_classes=num_classes))
    if cutmix > 0:
        chosen.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    return v2.RandomChoice(chosen)


def standard_augmentation(preprocessing: Preprocessing) -> StandardAugmentation:
    """Return the library's own training augmentation: picture -> uint8 [C, H, W], not yet normalised."""
    return StandardAugmentation(preprocessing)


@lru_cache(maxsize=8)
def _crop_and_flip(preprocessing: Preprocessing) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms import InterpolationMode, v2

    interpolation = InterpolationMode(preprocessing.interpolation)
    crop = v2.RandomResizedCrop(list(preprocessing.crop_size), (_LEAST_AREA, 1.0), interpolation=interpolation)
    augmentation: Callable[[Image.Image], Image.Image] = v2.Compose([crop, v2.RandomHorizontalFlip()])
    return augmentation


def _padded(picture: Image.Image, size: tuple[int, int], fill: list[int]) -> Image.Image:
    """Surround a picture that is smaller than `size` with a colour; torchvision's own crop would with black."""
    from torchvision.transforms import functional as F

    down, across = max(0, size[0] - picture.height), max(0, size[1] - picture.width)
    padded: Image.Image = F.pad(picture, [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2], fill)
    return padded


def _as_bytes(picture: Image.Image) -> Tensor:
    from torchvision.transforms import functional as F

    tensor: Tensor = F.pil_to_tensor(picture)
    return tensor


@lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Copy the constants to a device once: a fresh copy a batch would make the host wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def _check_size(name: str, size: Any) -> None:
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ArgumentError(f"{name} is {size!r}; expected a height and a width, pixels above zero.")
