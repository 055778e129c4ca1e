"""Picture files: which they are, and how one is read whatever its format, depth or colour mode."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from finetune.errors import DataError

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif",
)  # fmt: skip


def is_picture_file(path: str | os.PathLike[str]) -> bool:
    """Whether `path` has the suffix of a picture, in any case, and is not hidden."""
    name = os.path.basename(os.fspath(path))
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read the first frame of a picture file, turned the way its EXIF orientation asks for.

    Raises:
        DataError: the file is missing or cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            _turn_upright(picture)
            return picture
    except Exception as error:  # Pillow's decoders raise a dozen types on a damaged file
        raise undecodable(path, error) from error


def verify_picture(path: str | os.PathLike[str]) -> None:
    """Decode a picture file to the end and drop it; JPEG at an eighth of its size, which is quicker.

    Raises:
        DataError: as `read_picture`.
    """
    try:
        with Image.open(path) as picture:
            picture.draft(None, (max(1, picture.width // 8), max(1, picture.height // 8)))
            picture.load()
    except Exception as error:
        raise undecodable(path, error) from error


def undecodable(path: str | os.PathLike[str], error: Exception) -> DataError:
    path = Path(path)
    if not path.exists():
        return DataError(f"The picture '{path}' does not exist. Correct its path, or leave it out.")
    return DataError(
        f"The picture '{path}' cannot be decoded ({type(error).__name__}: {error}). "
        "Replace the file or remove it from the data."
    )


def with_channels(picture: Image.Image, channels: int) -> Image.Image:
    """Return `picture` with 8 bits in each of 3 channels (RGB) or 1 (grey); alpha is dropped.

    16-bit pictures keep their upper 8 bits; Pillow's own conversion would clip all above 255 to white.
    """
    mode = "RGB" if channels == 3 else "L"
    if picture.mode == mode:
        return picture
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray((values >> 8).astype(np.uint8))
    elif picture.mode in ("P", "PA") and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # straight to RGB, Pillow warns and maps the colours the same
    return picture.convert(mode)


def _turn_upright(picture: Image.Image) -> None:
    """Apply the EXIF orientation; a picture whose EXIF block is damaged is still a picture."""
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(picture, in_place=True)
