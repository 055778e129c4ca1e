"""Pictures on disk, small and all different."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Image.Image:
    """Return noise of `size` (width, height)."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


@pytest.fixture
def class_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a folder with `counts[name]` pictures per class."""

    def make(name: str = "train", **counts: int) -> Path:
        for k, (label, count) in enumerate(sorted(counts.items())):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(count):
                picture(100 * k + i).save(tmp_path / name / label / f"{i}.png")
        return tmp_path / name

    return make
