"""Weights load back into the library that the model comes from, with the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from finetune import ExportError, FineTuner, Preprocessing
from tests.helpers.models import TiedLanguageModel, small_mlp

transformers, timm = pytest.importorskip("transformers"), pytest.importorskip("timm")

IMAGES = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CLASSES = ("a", "b", "c")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_state_dict_loads_into_the_plain_class(suffix: str, tmp_path: Path) -> None:
    tuner = FineTuner(small_mlp(), device="cpu", loss="cross_entropy")
    path = tuner.export(tmp_path / f"model.{suffix}", "state_dict").path
    state = safetensors.torch.load_file(path) if suffix == "safetensors" else torch.load(path, weights_only=True)
    plain = small_mlp(seed=1)
    plain.load_state_dict(state)
    assert FineTuner(plain, device="cpu").predict(torch.ones(2, 4)).equal(tuner.predict(torch.ones(2, 4)))
    assert (
        FineTuner(small_mlp(seed=1), weights=path, device="cpu")
        .predict(torch.ones(2, 4))
        .equal(tuner.predict(torch.ones(2, 4)))
    )


def test_tied_weights_load_back(tmp_path: Path) -> None:
    tuner, tokens = FineTuner(TiedLanguageModel(), device="cpu"), torch.randint(11, (4, 5))
    made = tuner.export(tmp_path / "model.safetensors", "state_dict", verify=tokens)
    assert made.agreement.difference == 0


def test_a_folder_of_timm_builds_the_model_with_its_preprocessing(tmp_path: Path) -> None:
    preprocessing = Preprocessing(32, resize_size=40, mean=(0.1, 0.2, 0.3), interpolation="bicubic")
    tuner = FineTuner("timm/test_resnet", weights=None, device="cpu", preprocessing=preprocessing).replace_head(3)
    tuner.classes = CLASSES
    tuner.export(tmp_path / "folder", "pretrained")
    model = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    again = FineTuner(model, device="cpu", loss="cross_entropy")
    assert again.preprocessing == preprocessing
    assert again.predict(IMAGES).equal(tuner.predict(IMAGES))


def test_a_folder_of_transformers_is_a_model_name(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    model, preprocessing = transformers.ResNetForImageClassification(config), Preprocessing(32, resize_size=40)
    tuner = FineTuner(model, device="cpu", preprocessing=preprocessing, loss="cross_entropy")
    tuner.classes = CLASSES
    made = tuner.export(tmp_path / "folder", "pretrained")
    again = FineTuner(str(made.path), device="cpu")
    assert (again.classes, again.preprocessing) == (CLASSES, preprocessing)
    assert again.predict(IMAGES).equal(tuner.predict(IMAGES))
    assert tuner.model.config.id2label[0] == "LABEL_0"  # the names are those of the file


def test_a_preprocessing_that_no_library_has_is_said(tmp_path: Path) -> None:
    odd = Preprocessing(32, resize_size=(40, 50), resize_mode="contain")
    tuner = FineTuner("timm/test_resnet", weights=None, device="cpu", preprocessing=odd).replace_head(3)
    (note,) = tuner.export(tmp_path / "folder", "pretrained").notes
    assert "no data config" in note


def test_a_model_without_a_library_has_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Sequential has no save_pretrained"):
        FineTuner(small_mlp(), device="cpu").export(tmp_path / "folder", "pretrained")
    assert not any(tmp_path.iterdir())
