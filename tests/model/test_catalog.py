"""Models by name: with cached weights, weights from a local file, or random ones. No network."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision import models

from finetune.errors import ArgumentError, CheckpointError
from finetune.model import catalog
from tests.helpers.files import Touch
from tests.helpers.models import Undrawn


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, offline: None) -> Path:
    """Return the empty folder of the torch hub cache, with the network unreachable."""
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def cached(folder: Path, name: str, state: dict[str, Tensor], weights: str = "DEFAULT") -> Path:
    """Write weights to the place where the hub caches a model's published weights."""
    file = folder / Path(models.get_model_weights(name)[weights].url).name
    torch.save(state, file)
    return file


def slim_state(name: str, **options: Any) -> dict[str, Tensor]:
    """Return weights for a model that take no memory: each is one expanded number."""
    with torch.device("meta"):
        shapes = models.get_model(name, weights=None, **options).state_dict()
    generator = torch.Generator().manual_seed(0)
    return {key: torch.rand((), generator=generator).to(t.dtype).expand(t.shape) for key, t in shapes.items()}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_names_are_torchvisions_classifiers() -> None:
    assert len(catalog.names()) == 80 + 9
    assert {"resnet18", "vit_b_16", "swin_v2_t", "r3d_18", "swin3d_t"} <= set(catalog.names())


@pytest.mark.parametrize("name", ["resnet19", "ResNet-18", "", "fasterrcnn_resnet50_fpn"])
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"There is no model '{name}'.*such as 'resnet18', 'timm/NAME', 'hf/NAME'"):
        catalog.create(name)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ArgumentError, match="Did you mean 'resnet18'"):
        catalog.create("resnet19")


# ---------------------------------------------------------------- without weights


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "inception_v3", "vit_b_32", "squeezenet1_0"])
def test_without_weights(name: str) -> None:
    with Undrawn():
        made = catalog.create(name, None)
        again = catalog.rebuild(json.loads(json.dumps(made.origin)))
    assert made.classes is None
    assert made.preset.crop_size
    assert shapes(again) == shapes(made.model)
    assert type(again) is type(made.model)


def test_random_weights_are_drawn_from_the_global_state() -> None:
    torch.manual_seed(0)
    one = catalog.create("squeezenet1_0", None).model.state_dict()
    torch.manual_seed(0)
    two = catalog.create("squeezenet1_0", None).model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("origin", [{}, {"family": "timm", "name": "resnet18"}, {"family": "torchvision", "name": "x"}])
def test_an_unknown_origin_is_an_error(origin: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="Build it yourself and pass it as model="):
        catalog.rebuild(origin)


# ---------------------------------------------------------------- published weights


CACHED = {
    "resnet18": ({}, "IMAGENET1K_V1"),
    "googlenet": ({"init_weights": False}, "IMAGENET1K_V1"),
    "inception_v3": ({"init_weights": False}, "DEFAULT"),
    "vit_b_32": ({}, "DEFAULT"),
    "vit_b_16": ({"image_size": 384}, "IMAGENET1K_SWAG_E2E_V1"),
    "densenet121": ({}, "DEFAULT"),
}


@pytest.mark.parametrize("name", CACHED)
def test_a_cached_file_gives_the_model_of_torchvisions_builder(name: str, cache: Path) -> None:
    options, weights = CACHED[name]
    file = cached(cache, name, slim_state(name, **options), weights)
    entry = models.get_model_weights(name)[weights]
    with Undrawn():
        made = catalog.create(name, weights)
        theirs = models.get_model(name, weights=entry)
    ours, expected = made.model.state_dict(), theirs.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in ours)
    for attribute in ("aux_logits", "transform_input", "image_size"):
        assert getattr(made.model, attribute, None) == getattr(theirs, attribute, None)
    assert [n for n, _ in made.model.named_modules()] == [n for n, _ in theirs.named_modules()]
    assert repr(made.preset) == repr(entry.transforms())
    assert made.classes is not None
    assert list(made.classes) == entry.meta["categories"]

    file.unlink()  # a checkpoint needs no network
    with Undrawn():
        again = catalog.rebuild(json.loads(json.dumps(made.origin)))
    assert shapes(again) == shapes(made.model)
    for attribute in ("aux_logits", "transform_input", "image_size"):
        assert getattr(again, attribute, None) == getattr(theirs, attribute, None)


def test_without_a_network_the_error_names_the_url_the_file_and_ways_out(cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        catalog.create("resnet18")
    message = str(caught.value)
    assert "could not be downloaded" in message
    assert "Connection refused" in message
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert str(cache / "resnet18-f37072fd.pth") in message
    assert "weights='FILE'" in message
    assert "weights=None" in message


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", b"hello,world\n", b"\x80\x02}q\x00."])
def test_a_damaged_cached_file_is_an_error(content: bytes, cache: Path) -> None:
    file = cached(cache, "resnet18", {})
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be used: .*Delete the file to download it again") as caught:
        catalog.create("resnet18")
    assert str(file) in str(caught.value)


def test_a_cached_file_of_another_model_is_an_error(cache: Path) -> None:
    cached(cache, "resnet18", slim_state("squeezenet1_0"))
    with pytest.raises(CheckpointError, match=r"cannot be used: RuntimeError: Error.* Missing key"):
        catalog.create("resnet18")


def test_trap_24_no_code_in_a_cached_file_is_run(cache: Path, tmp_path: Path) -> None:
    state: dict[str, Any] = {**slim_state("resnet18"), "more": Touch(tmp_path / "touched")}
    cached(cache, "resnet18", state)
    with pytest.raises(CheckpointError, match="could run code"):
        catalog.create("resnet18")
    assert not (tmp_path / "touched").exists()


# ---------------------------------------------------------------- a local file


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("classes", [1000, 5])
def test_a_local_file(suffix: str, classes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = models.squeezenet1_1(weights=None, num_classes=classes)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, path)
    else:
        safetensors.torch.save_file(theirs.state_dict(), path)
    for given in (path, str(path)):
        made = catalog.create("squeezenet1_1", given)
        state = made.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())
        assert made.classes is None
        assert made.preset.crop_size == [224]
    removed = [] if classes == 1000 else 2 * ["The ReLU 'classifier.2' behind the head is removed"]
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == removed


def test_a_local_file_may_lack_only_the_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = models.squeezenet1_1(weights=None).state_dict()
    path = tmp_path / "w.pth"
    torch.save({name: value for name, value in state.items() if not name.startswith("classifier")}, path)
    with caplog.at_level(logging.WARNING, "finetune"):
        catalog.create("squeezenet1_1", path)
    assert "50 of 52 matched, 2 missing, 0 unexpected" in caplog.records[0].getMessage()
    torch.save({name: value for name, value in state.items() if name.startswith("classifier")}, path)
    with pytest.raises(CheckpointError, match="2 of 52 matched, 50 missing"):
        catalog.create("squeezenet1_1", path)


def test_a_local_inception_keeps_its_auxiliary_head(tmp_path: Path) -> None:
    torch.save(slim_state("inception_v3", init_weights=False), tmp_path / "w.pth")
    with Undrawn():
        made = catalog.create("inception_v3", tmp_path / "w.pth").model
    assert made.aux_logits
    assert made.transform_input


@pytest.mark.parametrize("weights", ["IMAGENET1K_V3", "default", "nowhere.pth", ".", ""])
def test_weights_that_are_neither_published_nor_a_file_are_an_error(weights: str) -> None:
    words = r"no weights .* for resnet50. Expected a file or one of .* IMAGENET1K_V2, DEFAULT"
    with pytest.raises(CheckpointError, match=words):
        catalog.create("resnet50", weights)
    with pytest.raises(CheckpointError, match="Did you mean 'IMAGENET1K_V"):
        catalog.create("resnet50", "IMAGENET1K_V3")
