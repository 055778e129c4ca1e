"""Image files of any format."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from finetune.data.preprocessing.base import IMAGE
from finetune.data.preprocessing.pixels import DEEP, RANGE, Range, value_range
from finetune.data.sources.files import FileSource
from finetune.digests import key_of_file
from finetune.errors import DataError
from finetune.files.regular import opened
from finetune.naming.paths import exists

logger = logging.getLogger("finetune")

# Formats of pictures. The others that Pillow knows are left to their own programs: some are scripts that it runs with
# Ghostscript (EPS), or formats that few files have and few people test. A plugin may add those it does not know.
_FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "JXL", "TGA",
)  # fmt: skip
_LARGE = 2**24  # pixels of an image that is decoded alone in the audit, because the threads share the memory
_MAX_SCANS = 200  # of a progressive JPEG; encoders write about 10
_SMALL = 2**20  # bytes of a file whose header is short enough, whatever it is
_BYTES_PER_READ = 50  # at least, on average; the shortest pieces of good files are the 256 bytes of a GIF's
_large_one = threading.Lock()


class TooManyPixelsError(DataError):
    """An image is larger than allowed."""


@dataclass(frozen=True)
class ImageFacts:
    """Facts on an image file that the messages on a whole data set need.

    Attributes:
        assumed: Range of values that was assumed, or None if the file states it.
        color: The color of every pixel, or None if there are several.
        frames: Whether the file has further frames, which are not read.
    """

    assumed: Range | None
    color: Any
    frames: bool


def read_image(path: str | os.PathLike[str] | IO[bytes], *, max_pixels: int | None = None) -> Image.Image:
    """Read the first frame of an image file and apply its EXIF orientation.

    Args:
        path: Path of the file, or an open one.
        max_pixels: Largest number of pixels; None for `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        DataError: If the file is missing, cannot be decoded, or has more pixels. The message names it.
    """
    with _open(path, max_pixels) as image:
        image.load()
        if image.mode.startswith(DEEP):
            image.info[RANGE] = value_range(image)  # before a crop changes the values that it is found from
        _orient(image)
        return image


def read_image_cell(cell: Mapping[str, Any]) -> Image.Image:
    """Read the image in a cell of a Hugging Face column that is not decoded: its bytes, or else the file at its path.

    Raises:
        DataError: If it has neither, or they cannot be decoded.
    """
    content, path = cell["bytes"], cell["path"]
    if content is None and path is None:
        raise DataError("The image has neither bytes nor a path. Remove the sample.")
    return read_image(path if content is None else io.BytesIO(content)).copy()


def verify_image(path: str | os.PathLike[str] | IO[bytes]) -> ImageFacts:
    """Decode an image file to the end and discard it. A JPEG is decoded at an eighth of its size, which is faster.

    Raises:
        DataError: If the file is missing or cannot be decoded. The message names it.
    """
    with _open(path) as image, _large_one if image.width * image.height > _LARGE else contextlib.nullcontext():
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
        deep = image.mode.startswith(DEEP)
        found = value_range(image) if deep else None
        frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # a phone's depth map
        return ImageFacts(found if found is not None and found.assumed else None, _only_color(image), frames)


@contextlib.contextmanager
def _open(path: str | os.PathLike[str] | IO[bytes], max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image file of one of the formats, with at most `max_pixels` or `PIL.Image.MAX_IMAGE_PIXELS` pixels.

    Raises:
        DataError: If it is missing or is no such file, and for any error while it is open. The message names it.
    """
    try:
        Image.init()
        formats = [name for name in _FORMATS if name in Image.OPEN]
        filename = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
        source = contextlib.nullcontext(path) if filename is None else opened(filename)
        with source as file, _in_few_reads(file) as content, Image.open(content, formats=formats) as image:
            pixels = image.width * image.height
            if max_pixels is not None and pixels > max_pixels:
                raise TooManyPixelsError(f"It has {pixels:,} pixels. Expected at most {max_pixels:,}.")
            if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            if image.info.get("progressive"):
                _check_scans(content)
            yield image
            if filename is not None:  # for a custom augmentation; not before, or Pillow may map the file into memory
                image.filename = filename
    except DataError as error:
        raise type(error)(f"The image {_name(path)}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"The image {_name(path)} has more than {Image.MAX_IMAGE_PIXELS:,} pixels. Resize it, or set "
            "PIL.Image.MAX_IMAGE_PIXELS to a higher number."
        ) from error
    except UnidentifiedImageError as error:
        expected = f"its content has none of the formats {', '.join(formats)}"
        raise _undecodable(path, UnidentifiedImageError(expected)) from error
    except Exception as error:  # Pillow raises a dozen types of errors on damaged files
        raise _undecodable(path, error) from error


class _FewReads(io.BufferedReader):
    """A file that is read in a limited number of pieces, because headers without end have millions of tiny ones."""

    def __init__(self, file: Any, size: int) -> None:
        super().__init__(file)
        self._left = size // _BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise OSError("its header consists of too many parts")
        return super().read(size)


@contextlib.contextmanager
def _in_few_reads(file: Any) -> Iterator[IO[bytes]]:
    """Limit the reads of a file, unless it is so small that nobody waits for them."""
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    if size < _SMALL:
        yield file
        return
    limited = _FewReads(file, size)
    try:
        yield limited
    finally:
        limited.detach()


def _check_scans(file: IO[bytes]) -> None:
    """Raise OSError if a progressive JPEG has too many scans, each of which takes as long as an image."""
    position = file.tell()
    file.seek(0)
    scans = sum(part.count(b"\xff\xda") for part in iter(lambda: file.read(_SMALL), b""))
    file.seek(position)
    if scans > _MAX_SCANS:
        raise OSError(f"it has {scans:,} scans, of which {_MAX_SCANS} are read")


def _only_color(image: Image.Image) -> Any:
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return tuple(low for low, _ in bands) if all(low == high for low, high in bands) else None


def _name(file: str | os.PathLike[str] | IO[bytes]) -> str:
    """Return a path in quotes, or the place of an open file."""
    return f"'{file}'" if isinstance(file, (str, os.PathLike)) else f"in {getattr(file, 'name', 'memory')}"


def _undecodable(file: str | os.PathLike[str] | IO[bytes], error: Exception) -> DataError:
    name = _name(file)
    if isinstance(file, (str, os.PathLike)) and not exists(file):
        return DataError(f"The image {name} does not exist. Correct its path, or leave it out.")
    return DataError(
        f"The image {name} cannot be decoded ({type(error).__name__}: {error}). "
        "Replace the file or remove it from the data."
    )


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

    def remark(self, facts: Sequence[ImageFacts], role: str) -> None:
        """Log assumed ranges of values, animations read as their first frame, and images of a single color."""
        assumed = Counter(fact.assumed for fact in facts if fact.assumed is not None)
        if assumed:
            shown = ", ".join(f"{count} as {found}" for found, count in assumed.most_common(4))
            example = next(i for i, fact in enumerate(facts) if fact.assumed is not None)
            logger.warning(
                "%d of the %d images of the %s data have more than 8 bits and do not state their range of values. It "
                "is assumed from each image: %s. Save them with 8 bits to decide it, such as '%s'.",
                assumed.total(), len(facts), role, shown, self.paths[example],
            )  # fmt: skip
        colors = {fact.color for fact in facts}
        if len(facts) > 1 and len(colors) == 1 and None not in colors:
            logger.warning("All %d images of the %s data are of one and the same color.", len(facts), role)
        frames = [i for i, fact in enumerate(facts) if fact.frames]
        if frames:
            logger.warning(
                "%d image%s of the %s data with several frames, such as '%s'. The first of each is used.",
                len(frames), "s" * (len(frames) > 1), role, self.paths[frames[0]],
            )  # fmt: skip

    def keys(self) -> Iterable[bytes] | None:
        """Return a digest of each file's path, size and modification times, or None if a file is missing."""
        if type(self) is not ImageFiles:
            return None  # a subclass may read its files differently
        try:
            return [key_of_file(path) for path in self.paths]
        except OSError:
            return None
