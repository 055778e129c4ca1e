"""The script beside a file prepares inputs to the last bit, and answers as `classify` does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, TiffImagePlugin
from torch import nn

from finetune import FineTuner, Preprocessing
from finetune.data.sources.image_files import read_image
from finetune.export.runner import Runner
from finetune.interpret.calibration import Calibration
from tests.helpers.image_files import picture
from tests.helpers.models import plain_cnn, small_mlp

SIZES = ((40, 32), (31, 64), (9, 200), (8, 8), (3, 5), (1, 1))
WAYS = {
    "shorter side": Preprocessing(12),
    "upright crop": Preprocessing((14, 10), resize_size=(20, 15)),
    "cover": Preprocessing((14, 10), resize_size=(20, 15), resize_mode="cover", interpolation="bicubic"),
    "contain": Preprocessing((14, 11), resize_size=(12, 15), resize_mode="contain", interpolation="lanczos"),
    "as it is": Preprocessing((21, 30), resize_size=None),
    "bgr, padded": Preprocessing(20, resize_size=9, interpolation="nearest-exact", bgr=True),
    "grayscale": Preprocessing(12, resize_size=17, interpolation="hamming").grey(),
}


def lab(image: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert converted is not None
    return converted


def numbers(size: tuple[int, int], top: float, kind: type) -> Image.Image:
    rng = np.random.default_rng(int(top))
    return Image.fromarray((rng.random((size[1], size[0])) * top).astype(kind))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return pictures of every mode and depth, some rotated, and of odd sizes."""
    folder, made = tmp_path_factory.mktemp("pictures"), []

    def save(image: Image.Image, suffix: str, **options: Any) -> None:
        made.append(folder / f"{len(made)}.{suffix}")
        image.save(made[-1], **options)

    for number, size in enumerate(SIZES):
        for mode in ("RGB", "L", "P", "RGBA", "LA", "1"):
            save(picture(number, size).convert(mode), "png", **({"transparency": 3} if mode == "P" else {}))
        exif = Image.Exif()
        exif[0x112] = 3 + number
        save(picture(number, size), "jpg", exif=exif)
        save(picture(number, size).convert("CMYK"), "jpg")
        save(picture(number, size), "webp", exif=exif)
        save(picture(number, size), "gif")
        save(picture(number, size).convert("YCbCr"), "tiff")
    save(lab(picture(0)), "tiff")
    for top in (200, 3000, 65535):
        save(numbers((33, 20), top, np.uint16), "png")
        save(numbers((20, 33), top, np.float32), "tiff")
    save(numbers((20, 33), 1, np.float32), "tiff")
    save(numbers((20, 33), 9, np.float32), "tiff")
    save(numbers((20, 33), 100_000, np.int32), "tiff")
    stated = TiffImagePlugin.ImageFileDirectory_v2()
    stated[281] = 1000
    save(numbers((20, 20), 900, np.uint16), "tiff", tiffinfo=stated)
    return made


def without_a_file(source: str) -> str:
    """Return the code of a script that loads no model."""
    loads = ("session = ", "facts = ", "classes = ")
    return "\n".join(line for line in source.splitlines() if not line.startswith(loads))


@pytest.mark.parametrize("way", WAYS)
def test_pictures_of_every_mode_and_size_are_the_same_to_the_last_bit(
    pictures: list[Path], way: str, tmp_path: Path
) -> None:
    preprocessing = WAYS[way]
    source = Runner("model.onnx", "onnx", None, [], preprocessing).source("model_onnx.py")
    (tmp_path / "prepare.py").write_text(without_a_file(source))
    prepare = run_path(str(tmp_path / "prepare.py"))["prepare"]
    for path in pictures:
        ours = preprocessing.geometry(read_image(path)).permute(1, 2, 0).numpy()
        assert np.array_equal(prepare(str(path))["images"][0], ours), path


def trained(outputs: int, loss: str, classes: tuple[str, ...] | None, calibration: Calibration) -> FineTuner:
    model = nn.Sequential(*plain_cnn()[:-1], nn.Linear(4, outputs))
    tuner = FineTuner(model, device="cpu", loss=loss, preprocessing=Preprocessing(12, bgr=True))
    X = torch.randint(256, (8, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tuner.predict(X)
    tuner.classes = classes
    tuner._learn(calibration=calibration)
    return tuner


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("outputs", "loss", "classes", "calibration"),
    [
        (3, "cross_entropy", ("a", "b", "c"), Calibration(0.3)),
        (1, "bce", ("no", "yes"), Calibration(2.0, (0.02,))),
        (1, "bce", ("no", "yes"), Calibration(2.0, (0.98,))),
        (3, "bce", ("a", "b", "c"), Calibration(1.0, (0.45, 0.6, 0.5))),
        (2, "mse", None, Calibration()),
    ],
    ids=["classes", "mostly yes", "mostly no", "labels", "values"],
)
def test_the_script_answers_as_classify_does(
    pictures: list[Path], tmp_path: Path, format: str, outputs: int, loss: str, classes: Any, calibration: Calibration
) -> None:
    tuner = trained(outputs, loss, classes, calibration)
    tuner.export(tmp_path / "model", format)
    classify = run_path(str(tmp_path / f"model_{format}.py"))["classify"]
    some = pictures[:16]
    for path, answer in zip(some, tuner.classify([str(path) for path in some]), strict=True):
        found = classify(str(path))
        assert list(found) == list(answer.scores)
        assert np.allclose([*found.values()], [*answer.scores.values()], atol=1e-6)


def test_the_script_runs_by_itself(pictures: list[Path], tmp_path: Path) -> None:
    trained(3, "cross_entropy", ("a", "b", "c"), Calibration()).export(tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, tmp_path / "model_onnx.py", *pictures[:2]], capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(map(str, pictures[:2]))
    unused = subprocess.run([sys.executable, tmp_path / "model_onnx.py"], capture_output=True, text=True, check=False)
    assert unused.returncode == 1
    assert "python model_onnx.py PICTURE ..." in unused.stderr
    assert "finetune" not in (tmp_path / "model_onnx.py").read_text().replace("torch-finetune", "")


def test_arrays_are_read_from_files_of_numpy(tmp_path: Path) -> None:
    tuner = FineTuner(small_mlp(), device="cpu", loss="cross_entropy")
    tuner.classes = ("a", "b", "c")
    tuner.export(tmp_path / "model.pt2", "torch")
    X = torch.randn(1, 4)
    np.save(tmp_path / "x.npy", X[0].numpy())
    found = run_path(str(tmp_path / "model_torch.py"))["classify"](str(tmp_path / "x.npy"))
    assert found == pytest.approx(tuner.classify(X)[0].scores)


def test_maps_have_no_script(tmp_path: Path) -> None:
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tuner = FineTuner(nn.Conv2d(3, 2, 1), device="cpu", loss="cross_entropy", preprocessing=Preprocessing(8))
    made = tuner.export(tmp_path / "model.pt2", "torch", verify=(images, torch.zeros(2, 8, 8).long()))
    assert made.notes == ("its answers are maps or sequences, so no script prints them",)
    assert made.agreement.labeled == 2 * 8 * 8
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
