"""Data of many files, rows or classes for `benchmarks.scaling`, made in a temporary folder."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from finetune import FineTuner
from finetune.callbacks import Callback

_FOLDERS = 100  # one per class
_IMAGES = 50  # different ones; a file system keeps at most 65,000 names of one
_SAMPLES = 2_048  # that are evaluated over many classes


@contextmanager
def opening(axis: str, count: int) -> Iterator[Callable[[], float]]:
    """Yield a function that measures seconds over `count` files, rows or classes, as `axis` says.

    Over files in a folder, or rows of a CSV file, they are those from the call of `fit` to the end of its first step.
    Over classes, they are those of `evaluate` with f1, precision and recall.
    """
    if axis == "classes":
        yield lambda: _evaluation(count)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, data = _folder(folder / "small", _FOLDERS * 2), _folder(folder / "data", count, links=axis == "rows")
        _first_step(small)  # imports what a first step needs
        yield lambda: _first_step(data if axis == "files" else _table(data))


class _EndedError(Exception):
    """The first step has ended."""


class _First(Callback):
    def on_step_end(self, run: Any) -> None:
        raise _EndedError


class _Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, _FOLDERS))


def _first_step(data: Path) -> float:
    tuner = FineTuner(_Net(), preprocessing={"crop_size": (32, 32)}, device="cpu")
    start = time.perf_counter()
    with suppress(_EndedError):
        tuner.fit(data, epochs=2, callbacks=[_First()], progress=False)
    return time.perf_counter() - start


def _evaluation(classes: int) -> float:
    tuner = FineTuner(nn.Linear(8, classes), metrics=["f1", "precision", "recall"], device="cpu")
    X, y = torch.randn(_SAMPLES, 8), torch.arange(_SAMPLES) % classes
    tuner.evaluate((X[:64], y[:64]), batch_size=32)
    start = time.perf_counter()
    tuner.evaluate((X, y), batch_size=32)
    return time.perf_counter() - start


def _folder(folder: Path, count: int, *, links: bool = False) -> Path:
    """Write `count` small JPEG files, one folder per class, or hard links to a few."""
    contents = list(_contents())
    for number in range(count):
        path = folder / f"class_{number % _FOLDERS:02d}" / f"image_{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True) if number < _FOLDERS else None
        if links and number >= _FOLDERS * _IMAGES:
            first = number % (_FOLDERS * _IMAGES)
            os.link(folder / f"class_{first % _FOLDERS:02d}" / f"image_{first:07d}.jpg", path)
        else:
            path.write_bytes(contents[number % _IMAGES])
    return folder


def _contents() -> Iterator[bytes]:
    pixels = np.random.default_rng(0).integers(256, size=(_IMAGES, 8, 8, 3), dtype=np.uint8)
    for image in map(Image.fromarray, pixels):
        file = io.BytesIO()
        image.resize((64, 64)).save(file, "jpeg")
        yield file.getvalue()


def _table(folder: Path) -> Path:
    """Write the files of a folder to a CSV file beside them, with the name of their folder as the label."""
    path = folder / "rows.csv"
    with path.open("w") as file:
        file.write("path,label\n")
        for part in sorted(folder.glob("class_*")):
            file.writelines(f"{part.name}/{name},{part.name}\n" for name in sorted(os.listdir(part)))
    return path
