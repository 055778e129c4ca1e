from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from finetune.data.audit import audit
from finetune.data.preprocessing import pixels
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.pixels import value_range, with_channels
from finetune.data.sources.image_files import read_image, verify_image
from finetune.data.sources.open_source import open_source
from finetune.errors import DataError
from tests.helpers.image_files import picture

RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))
EIGHT_BITS = (255 * RAMP).round()

# The same ramp from black to white in files of more than 8 bits, and the range that each is read as.
RAMPS: dict[str, tuple[np.ndarray, str]] = {
    "float.tif": (RAMP.astype(np.float32), "0 to 1"),
    "signed float.tif": ((2 * RAMP - 1).astype(np.float32), "-1 to 1"),
    "float of 8 bits.tif": ((255 * RAMP).astype(np.float32), "0 to 255"),
    "float of 12 bits.tif": ((4095 * RAMP).astype(np.float32), "0 to 4095"),
    "float of 16 bits.tif": ((65535 * RAMP).astype(np.float32), "0 to 65535"),
    "overshooting float.tif": ((1.01 * RAMP - 0.005).astype(np.float32), "-0.005 to 1.005"),
    "degrees.tif": ((60 * RAMP - 20).astype(np.float32), "-20 to 40"),
    "int32.tif": ((255 * RAMP).astype(np.int32), "0 to 255"),
    "hounsfield.tif": ((4000 * RAMP - 1000).astype(np.int32), "-1000 to 3000"),
    "counts.tif": ((1e6 * RAMP).astype(np.int32), "0 to 1e+06"),
    "12bit.png": ((4095 * RAMP).astype(np.uint16), "0 to 4095"),
    "8in16.png": ((255 * RAMP).astype(np.uint16), "0 to 255"),
    "16bit.png": ((65535 * RAMP).astype(np.uint16), "0 to 65535"),
    "16bit.tif": ((65535 * RAMP).astype(np.uint16), "0 to 65535"),
    "big-endian.pgm": ((65535 * RAMP).astype(np.uint16), "0 to 65535"),
}


@pytest.mark.parametrize("name", RAMPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_black_and_white_stay_black_and_white(tmp_path: Path, name: str, channels: int) -> None:
    values, expected = RAMPS[name]
    Image.fromarray(values).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert str(value_range(image)) == expected
    got = np.asarray(with_channels(image, channels)).reshape(32, 32, -1)[..., 0]
    assert np.abs(got.astype(int) - EIGHT_BITS).max() <= 1
    cropped = with_channels(image.crop((0, 0, 4, 4)), channels)  # scaled by the whole file
    assert np.array_equal(np.asarray(cropped).reshape(4, 4, -1)[..., 0], got[:4, :4])


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
@pytest.mark.parametrize(
    "values",
    [
        np.arange(77, dtype=np.uint16) * 800,
        np.arange(77, dtype=">u2") * 50,
        np.arange(77, dtype=np.int32) * 900 - 30000,
        np.arange(77, dtype=np.float32) / 77,
        np.linspace(-9, 20, 77, dtype=np.float32),
    ],
)
def test_a_deep_image_is_converted_by_blocks(
    values: np.ndarray, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(values.reshape(11, 7)).save(tmp_path / "a.tif")
    whole = value_range(Image.open(tmp_path / "a.tif")), with_channels(read_image(tmp_path / "a.tif"), 1)
    monkeypatch.setattr(pixels, "_PIXELS_AT_ONCE", 7 * rows)
    blocks = value_range(Image.open(tmp_path / "a.tif")), with_channels(read_image(tmp_path / "a.tif"), 1)
    assert whole[0] == blocks[0]
    assert whole[1].tobytes() == blocks[1].tobytes()
    assert len({*whole[1].tobytes()}) > 15


def test_a_stated_range_is_believed(tmp_path: Path) -> None:
    Image.fromarray((1000 * RAMP).astype(np.uint16)).save(tmp_path / "a.tif", tiffinfo={281: 2000})
    assert value_range(read_image(tmp_path / "a.tif")) == (0, 2000, False)
    assert verify_image(tmp_path / "a.tif").assumed is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_an_error(tmp_path: Path, value: float) -> None:
    values = RAMP.astype(np.float32)
    values[3, 4] = value
    for name in "ab":
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
    with pytest.raises(DataError, match=r"2 of the 2 images .*a\.tif.*NaN or infinite"):
        audit(open_source(tmp_path, labeled=False))
    with pytest.raises(DataError, match="NaN or infinite"):
        Preprocessing().check(Image.fromarray(values))


def test_assumptions_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, (values, _) in RAMPS.items():
        Image.fromarray(values).save(tmp_path / name)
    picture(1).save(tmp_path / "photo.png")
    audit(open_source(tmp_path, labeled=False), role="prediction")
    [record] = caplog.records
    assert "13 of the 16 images of the prediction data have more than 8 bits" in record.getMessage()
    assert "2 as 0 to 4095" in record.getMessage()


def test_images_of_one_color_and_of_several_frames_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    source = open_source(tmp_path, labeled=False)
    audit(source)
    assert "All 3 images of the training data are of one and the same color" in caplog.text
    caplog.clear()
    frames = [picture(1), picture(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.tif", save_all=True, append_images=frames[1:])
    audit(open_source(tmp_path, labeled=False))
    [record] = caplog.records
    assert "2 images of the training data with several frames" in record.getMessage()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_pillow_is_converted(mode: str, channels: int) -> None:
    grey = Image.fromarray(EIGHT_BITS.astype(np.uint8))
    steps = {"La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"], "PA": ["P", "PA"], "HSV": ["RGB", "HSV"]}.get(mode, [mode])
    image = grey
    for step in steps:
        image = image.convert(step)
    got = np.asarray(with_channels(image, channels)).reshape(32, 32, -1)[..., 0].astype(int)
    assert np.abs(got - EIGHT_BITS).max() <= (255 if mode == "1" else 2)
    assert got.max() > 250
    assert got.min() < 5


def test_lab_is_converted_by_its_profile() -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = Image.new("RGB", (8, 8), (200, 40, 90))
    lab = ImageCms.applyTransform(image, to_lab)
    assert lab is not None
    assert np.abs(np.asarray(with_channels(lab, 3)).astype(int) - np.asarray(image)).max() <= 4


def test_a_palette_with_more_transparency_than_colors_is_damage() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.info["transparency"] = bytes(257)
    with pytest.raises(DataError, match="Images of mode P cannot be read: "):
        with_channels(image, 3)
