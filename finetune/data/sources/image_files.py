"""Image files of any format, bit depth and color mode."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from finetune.data.preprocessing.base import IMAGE
from finetune.data.sources.files import FileSource
from finetune.digests import key_of_file
from finetune.errors import DataError


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read the first frame of an image file and apply its EXIF orientation.

    Raises:
        DataError: If the file is missing or cannot be decoded. The message names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            _orient(image)
            return image
    except Exception as error:  # Pillow raises a dozen types of errors on damaged files
        raise _undecodable(path, error) from error


def verify_image(path: str | os.PathLike[str]) -> None:
    """Decode an image file to the end and discard it. A JPEG is decoded at an eighth of its size, which is faster.

    Raises:
        DataError: If the file is missing or cannot be decoded. The message names it.
    """
    try:
        with Image.open(path) as image:
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except Exception as error:
        raise _undecodable(path, error) from error


def _undecodable(path: str | os.PathLike[str], error: Exception) -> DataError:
    path = Path(path)
    if not path.exists():
        return DataError(f"The image '{path}' does not exist. Correct its path, or leave it out.")
    return DataError(
        f"The image '{path}' cannot be decoded ({type(error).__name__}: {error}). "
        "Replace the file or remove it from the data."
    )


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return `image` with 3 channels (RGB) or 1 (grayscale) of 8 bits, and without alpha.

    16-bit images keep their upper 8 bits. Pillow's own conversion would clip all values above 255 to white.
    """
    mode = "RGB" if channels == 3 else "L"
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # converting to RGB directly gives the same colors and a warning
    return image.convert(mode)


def _orient(image: Image.Image) -> None:
    """Apply the EXIF orientation, or nothing if the EXIF block is damaged."""
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


class ImageFiles(FileSource):
    """Image files, read as PIL images."""

    kind = IMAGE
    noun = "image"
    problem = "decoded"
    suffixes = (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp",
        ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif",
    )  # fmt: skip
    read = staticmethod(read_image)
    verify = staticmethod(verify_image)

    def keys(self) -> Iterable[bytes] | None:
        """Return a digest of each file's path, size and modification times, or None if a file is missing."""
        if type(self) is not ImageFiles:
            return None  # a subclass may read its files differently
        try:
            return [key_of_file(path) for path in self.paths]
        except OSError:
            return None
