"""Pixels of any bit depth and color mode as 8-bit RGB or grayscale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from finetune.errors import DataError

# Modes of more than 8 bits: 32-bit integers, 16-bit integers in either byte order, and floats.
DEEP = ("I", "F")
# Key of the range of values in an image's `info`, which a crop keeps.
RANGE = "value_range"

_MAX_SAMPLE_VALUE = (281, 341)  # tags of TIFF 6.0: MaxSampleValue and SMaxSampleValue
_PIXELS_AT_ONCE = 2**20
_TOPS = (255, 4095, 65535)  # 8, 12 and 16 bits


class Range(NamedTuple):
    """The values of black and of white in an image.

    Attributes:
        black: Value of black.
        white: Value of white.
        assumed: Whether it was found from the values, because the file does not state it.
    """

    black: float
    white: float
    assumed: bool = True

    def __str__(self) -> str:
        return f"{self.black:g} to {self.white:g}"


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return `image` with 3 channels (RGB) or 1 (grayscale) of 8 bits, and without alpha.

    Values of more than 8 bits are scaled by the range of the file, where Pillow's own conversion would clip them.

    Raises:
        DataError: If the image has values that are not finite, or a mode without a conversion.
    """
    mode = "RGB" if channels == 3 else "L"
    if image.mode == mode:
        return image
    try:
        return _plain(image).convert(mode)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"Images of mode {image.mode} cannot be read: {error}. Save them as RGB.") from error


def _plain(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits in a mode that Pillow converts to any other."""
    if image.mode.startswith(DEEP):
        return _to_8_bits(image)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        return image.convert("RGBA")  # converting to RGB directly gives the same colors and a warning
    if image.mode in ("La", "RGBa"):  # premultiplied; Pillow converts them only to their plain form
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return _to_rgb(image) if image.mode in ("LAB", "HSV") else image


def value_range(image: Image.Image) -> Range:
    """Return the range of values of an image of more than 8 bits, by its file alone.

    A TIFF file may state the highest value. Otherwise the range is the smallest of 0 to 1 and -1 to 1 (floats only),
    and 8, 12 and 16 bits that holds all values, and else that of the values.

    Raises:
        DataError: If a value is NaN or infinite.
    """
    if RANGE in image.info:
        return Range(*image.info[RANGE])
    lows, highs = [], []
    for values in _blocks(image):
        if not np.isfinite(values).all():
            raise DataError("It has pixels that are NaN or infinite. Correct or remove the image.")
        lows.append(float(values.min()))
        highs.append(float(values.max()))
    low, high = min(lows), max(highs)
    tags = getattr(image, "tag_v2", {})
    stated = next((tags[tag] for tag in _MAX_SAMPLE_VALUE if tag in tags), None)
    if stated is not None:
        white = float(stated[0] if isinstance(stated, tuple) else stated)
        if white > 0 and 0 <= low <= high <= white:
            return Range(0, white, assumed=False)
    floats = image.mode == "F"
    if floats and low >= -1 and high <= 1:
        return Range(0 if low >= 0 else -1, 1)
    top = next((top for top in _TOPS if low >= 0 and high <= top), None)
    if top is None or (floats and high < 16):  # floats slightly above 1 are no dark image of 8 bits
        return Range(low, high)
    return Range(0, top, assumed=top < 65535 or floats or image.mode == "I")


def _to_8_bits(image: Image.Image) -> Image.Image:
    black, white, _ = value_range(image)
    scaled = np.empty((image.height, image.width), np.uint8)
    top = 0
    for values in _blocks(image):
        scaled[top : top + len(values)] = _scaled(values, black, white)
        top += len(values)
    return Image.fromarray(scaled)


def _scaled(values: np.ndarray, black: float, white: float) -> np.ndarray:
    if black == 0 and white in _TOPS and values.dtype.kind != "f":
        return values.astype(np.int64).clip(0, int(white)) >> (int(white).bit_length() - 8)  # the upper 8 bits
    unit = (values.astype(np.float64) - black) / max(white - black, np.finfo(np.float64).tiny)
    rounded: np.ndarray = (255 * unit.clip(0, 1)).round()
    return rounded


def _blocks(image: Image.Image) -> Iterator[np.ndarray]:
    """Yield the values of some rows at a time, because wider copies of a large image would fill the memory."""
    rows = max(1, _PIXELS_AT_ONCE // max(1, image.width))
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        whole = bottom - top == image.height
        yield np.asarray(image if whole else image.crop((0, top, image.width, bottom)))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a mode that Pillow converts only with a color profile."""
    if image.mode == "HSV":
        return image.convert("RGB")
    from PIL import ImageCms

    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, to_rgb)
    assert converted is not None
    return converted
