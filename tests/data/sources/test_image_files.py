from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.pixels import with_channels
from finetune.data.sources.image_files import read_image, verify_image
from finetune.errors import DataError
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
