"""What all tests share."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from tests.helpers.pictures import picture

settings.register_profile("untimed", deadline=None, max_examples=50)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing in the torch hub's cache, and close every way out to the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first use
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    return bool(left == right)


@pytest.fixture
def same() -> Callable[[Any, Any], bool]:
    """Return a function that tells whether two nestings of dicts and tensors are equal bit for bit."""
    return _same


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
