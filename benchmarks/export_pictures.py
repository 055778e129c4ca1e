"""Photographs of odd sizes, modes and formats through an exported file and its script, beside `classify`.

    python -m benchmarks.export_pictures

The photographs are crops of scikit-learn's two, which the classes tell apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from finetune import FineTuner

# Mode and suffix of each kind of file.
KINDS = (
    ("RGB", "png"), ("RGB", "jpg"), ("RGB", "webp"), ("RGB", "bmp"), ("L", "png"), ("L", "jpg"), ("P", "png"),
    ("P", "gif"), ("RGBA", "png"), ("RGBA", "webp"), ("LA", "png"), ("CMYK", "jpg"), ("CMYK", "tiff"), ("1", "png"),
    ("I;16", "png"), ("I;16", "tiff"), ("F", "tiff"), ("YCbCr", "jpg"), ("LAB", "tiff"),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print the agreement for each format. Return 1 if a class differs, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="number of photographs (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder), options.count)
    print("\n".join(lines))
    return int(any(f"{options.count} of {options.count}" not in line for line in lines))


def measure(folder: Path, count: int) -> list[str]:
    """Return a line for each format: the classes that agree, and the largest difference of a probability."""
    for label in ("china", "flower"):
        (folder / "train" / label).mkdir(parents=True)
    for index in range(60):
        label, picture = _photograph(index, seed=1)
        picture.resize((96, 80)).save(folder / "train" / label / f"{index}.png")
    tuner = FineTuner("timm/test_resnet", weights=None, device="cpu", preprocessing={"crop_size": 64}).replace_head(2)
    tuner.fit(folder / "train", False, epochs=3, progress=False)
    files = [str(_saved(folder, index)) for index in range(count)]
    answers, lines = tuner.classify(files), []
    for format in ("onnx", "torch"):
        tuner.export(folder / "model", format, verify=files)
        classify = run_path(str(folder / f"model_{format}.py"))["classify"]
        lines.append(f"{format}: {_agreement(answers, [classify(file) for file in files])}")
    return lines


def _agreement(answers: Sequence[Any], found: Sequence[dict[str, float]]) -> str:
    pairs = list(zip(answers, found, strict=True))
    same = sum(answer.best == next(iter(scores)) for answer, scores in pairs)
    largest = max(abs(answer.scores[name] - scores[name]) for answer, scores in pairs for name in scores)
    kinds = {name: sum(answer.best == name for answer in answers) for name in ("china", "flower")}
    return f"{same} of {len(found)} classes agree ({kinds}), largest difference {largest:.1e}"


def _photograph(index: int, seed: int) -> tuple[str, Image.Image]:
    """Return a class, and a crop of its photograph of a random size from 5 to 420 pixels."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng((seed, index))
    label = ("china", "flower")[index % 2]
    whole = Image.fromarray(load_sample_image(f"{label}.jpg"))
    width, height = (int(side) for side in rng.integers(5, 421, 2))
    left, top = (int(rng.integers(0, 1 + most - side)) for most, side in zip(whole.size, (width, height), strict=True))
    return label, whole.crop((left, top, left + width, top + height))


def _saved(folder: Path, index: int) -> Path:
    """Write a photograph as one of the kinds, every third with an EXIF orientation if the format has one."""
    _, picture = _photograph(index, seed=2)
    mode, suffix = KINDS[index // 2 % len(KINDS)]
    if mode == "LAB":
        picture = _lab(picture)
    elif mode in ("I;16", "F"):
        values = np.asarray(picture.convert("L"))
        picture = Image.fromarray(values.astype(np.uint16) * 257 if mode == "I;16" else values.astype(np.float32) / 255)
    else:
        picture = picture.convert(mode)
    exif = Image.Exif()
    exif[0x112] = 1 + index % 8
    path = folder / f"{index}.{suffix}"
    options: dict[str, Any] = {"exif": exif} if index % 3 == 0 and suffix in ("png", "jpg", "webp") else {}
    picture.save(path, **options)
    return path


def _lab(picture: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.applyTransform(picture, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert converted is not None
    return converted


if __name__ == "__main__":
    sys.exit(main())
