"""Fixtures of all tests, and the settings of hypothesis."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from finetune import Phase
from finetune.callbacks import Callback
from tests.helpers import stand_in
from tests.helpers.callbacks import Watch
from tests.helpers.image_files import picture
from tests.helpers.models import small_mlp
from tests.helpers.tensors import gaussian_blobs
from tests.helpers.tuners import ScriptedTuner

settings.register_profile("untimed", deadline=None, max_examples=50)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture
def accelerator() -> Iterator[torch.device]:
    """Return the GPU of this machine, or else a stand-in for one."""
    if torch.cuda.is_available():
        yield torch.device("cuda")
    elif stand_in.AVAILABLE:
        with stand_in.devices() as device:
            yield device
    else:
        pytest.skip("needs a GPU, or a C++ compiler for a stand-in")


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
    """Return a function that makes a folder with `counts[name]` images per class."""

    def make(name: str = "train", **counts: int) -> Path:
        for k, (label, count) in enumerate(sorted(counts.items())):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(count):
                picture(100 * k + i).save(tmp_path / name / label / f"{i}.png")
        return tmp_path / name

    return make


@pytest.fixture
def blobs() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `gaussian_blobs`: a function that makes inputs [n, 4] in three clusters, and class indices [n]."""
    return gaussian_blobs


@pytest.fixture
def net() -> Callable[..., nn.Sequential]:
    """Return `small_mlp`: a function that makes a network with batch norm and dropout for `blobs`."""
    return small_mlp


@pytest.fixture
def watch() -> type[Watch]:
    """Return the callback class that records a run."""
    return Watch


@pytest.fixture
def scripted() -> Callable[..., ScriptedTuner]:
    """Return a function that fits with the given validation values, one per epoch, in batches of 20 samples."""

    def fit(values: list[float], *callbacks: Callback, phases: int = 1, **kwargs: Any) -> ScriptedTuner:
        tuner = ScriptedTuner(small_mlp(), device="cpu")
        tuner.script = iter(values)
        plan = [Phase("*", len(values), 1e-2, "constant") for _ in range(phases)]
        train, val = gaussian_blobs(), gaussian_blobs(20, seed=5)
        tuner.fit(train, val, strategy=plan, batch_size=20, callbacks=callbacks, **kwargs)
        return tuner

    return fit


@pytest.fixture
def state_of() -> Callable[[nn.Module], dict[str, Tensor]]:
    """Return a function that copies the parameters and buffers of a model."""
    return lambda model: {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def timeless() -> Callable[[Any], list[dict[str, Any]]]:
    """Return a function that returns the rows of a history without times and speeds."""
    clocks = ("seconds", "samples_per_second")
    return lambda history: [{key: value for key, value in row.items() if key not in clocks} for row in history]


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Write four images to `tmp_path` and return their names."""
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    return [f"{i}.png" for i in range(4)]
