from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.pixels import with_channels
from finetune.data.sources.image_files import read_image, verify_image
from finetune.errors import DataError
from tests.helpers.files import SPECIAL, make_special, tried
from tests.helpers.image_files import picture


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "P"), ("jpg", "CMYK"), ("png", "LA"), ("gif", "P"), ("webp", "RGBA")]
)
def test_files_of_every_mode_are_read(tmp_path: Path, suffix: str, mode: str) -> None:
    image = picture(6).convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}")
    assert Preprocessing(crop_size=(9, 9), resize_size=9).geometry(read).shape == (3, 9, 9)


def test_palette_with_transparency_keeps_its_colors(tmp_path: Path) -> None:
    image = picture(6).quantize(8)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    read = with_channels(read_image(tmp_path / "a.png"), 3)
    assert np.array_equal(np.asarray(read), np.asarray(image.convert("RGB")))


def test_16_bit_png_keeps_its_upper_bits(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "deep.png")
    grey = with_channels(read_image(tmp_path / "deep.png"), 1)
    assert np.array_equal(np.asarray(grey), (values >> 8).astype(np.uint8))
    colour = with_channels(read_image(tmp_path / "deep.png"), 3)
    assert np.array_equal(np.asarray(colour)[..., 2], (values >> 8).astype(np.uint8))
    wide = with_channels(Image.fromarray(values.astype(np.int32)), 1)
    assert np.array_equal(np.asarray(wide), np.asarray(grey))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # the upper left quarter
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    read = np.asarray(read_image(tmp_path / "a.png"))[..., 0] > 128
    where_it_belongs = [(0, 0), (0, -1), (-1, -1), (-1, 0), (0, 0), (0, -1), (-1, -1), (-1, 0)]
    assert read[where_it_belongs[orientation - 1]]
    assert read.sum() == 32
    assert read.shape == ((8, 16) if orientation < 5 else (16, 8))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # a warning of Pillow's
def test_a_damaged_exif_block_is_ignored(tmp_path: Path) -> None:
    picture(7).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00" + struct.pack("<IH", 8, 9000) + b"\x12\x01")
    assert read_image(tmp_path / "a.jpg").size == (40, 32)


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png' does not exist"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png' does not exist"):
        verify_image(tmp_path / "gone.png")


@pytest.mark.parametrize(("size", "limit"), [((11, 10), 100), ((30, 10), 100), ((30, 10), 299)])
@pytest.mark.parametrize("warnings_are", ["error", "ignore"])
def test_an_image_of_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], limit: int, warnings_are: Any
) -> None:
    picture(1, size).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for read in (read_image, verify_image):
        with warnings.catch_warnings():
            warnings.simplefilter(warnings_are)
            with pytest.raises(DataError, match=rf"a\.png' has more than {limit} pixels"):
                read(tmp_path / "a.png")
    for enough in (size[0] * size[1], None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", enough)
        assert read_image(tmp_path / "a.png").size == size


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        b"\x01\x00\x00\x00" + bytes(36) + b" EMF" + bytes(60),
        b"SIMPLE  =                    T" + bytes(2850),
        b"8BPS\x00\x01" + bytes(100),
    ],
)
def test_content_of_an_uncommon_format_is_left_to_its_own_program(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_image, verify_image):
        with pytest.raises(DataError, match=r"a\.png' cannot be decoded.*its content has none of the formats JPEG"):
            read(tmp_path / "a.png")


def test_a_common_format_is_read_whatever_the_name(tmp_path: Path) -> None:
    for format in ("JPEG", "BMP", "DIB", "GIF", "PNG", "PPM", "TIFF", "WEBP", "TGA", "JPEG2000"):
        picture(1).save(tmp_path / "a.png", format=format)
        assert read_image(tmp_path / "a.png").size == (40, 32)
        verify_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_a_regular_file_is_an_image(tmp_path: Path, kind: str) -> None:
    make_special(tmp_path / "a.png", kind)
    for read in (read_image, verify_image):
        with pytest.raises(DataError, match=r"a\.png' cannot be decoded .*(this is a|No such device)"):
            read(tmp_path / "a.png")


def test_a_custom_augmentation_finds_the_name_of_the_file(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").filename == str(tmp_path / "a.png")  # type: ignore[attr-defined]


_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damage that it can skip
@given(st.data(), st.sampled_from(_FORMATS), st.sampled_from(("1", "L", "P", "RGB")))
def test_a_damaged_image_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, format: str, mode: str
) -> None:
    saved = io.BytesIO()
    picture(1, (9, 7)).convert(mode if format in ("BMP", "GIF", "PNG", "TIFF") else "RGB").save(saved, format=format)
    content = bytearray(saved.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    path = tmp_path_factory.mktemp("damaged") / "a.png"
    path.write_bytes(content)
    for read in (read_image, verify_image):
        found = tried(read, path)
        assert not isinstance(found, DataError) or str(path) in str(found)


def _jpeg(**options: Any) -> bytes:
    saved = io.BytesIO()
    picture(1).save(saved, "JPEG", **options)
    return saved.getvalue()


def _of_scans(count: int) -> bytes:
    content = _jpeg(progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * (count - content.count(b"\xff\xda")) + content[-2:]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_of_scans(201), "it has 201 scans, of which 200 are read"),
        (_jpeg()[:2] + b"\xff\xfe\0\2" * 300_000 + _jpeg()[2:], "its header consists of too many parts"),
        (b"P6\n#" + b"x" * 1_100_000 + b"\n2 2\n255\n" + bytes(12), "its header consists of too many parts"),
    ],
)
def test_an_image_that_takes_longer_than_its_pixels_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_image, verify_image):
        with pytest.raises(DataError, match=rf"a\.png' cannot be decoded \(OSError: {reason}\)"):
            read(tmp_path / "a.png")
        file = io.BytesIO(content)
        with pytest.raises(DataError, match=reason):
            read(file)
        assert not file.closed


def test_a_progressive_image_of_many_scans_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_of_scans(200))
    assert np.array_equal(
        np.asarray(read_image(tmp_path / "a.jpg")), np.asarray(Image.open(io.BytesIO(_of_scans(200))))
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP", "TGA", "JPEG2000"])
def test_a_large_file_is_read_as_pillow_reads_it(tmp_path: Path, format: str) -> None:
    whole = picture(1, (1100, 1100))
    whole.save(tmp_path / "a", format, **{"quality": 95} if format in ("JPEG", "WEBP") else {})
    assert (tmp_path / "a").stat().st_size > 2**20
    with Image.open(tmp_path / "a") as expected:
        assert np.array_equal(np.asarray(read_image(tmp_path / "a")), np.asarray(expected))
