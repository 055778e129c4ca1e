"""The model card: what it says of a checkpoint, by the hub's own reader, and its code, which runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune import FineTuner
from finetune.callbacks import EarlyStopping
from finetune.card.card import model_card
from finetune.checkpoint import schema
from tests.helpers.models import small_mlp
from tests.helpers.tensors import gaussian_blobs
from tests.test_docs import examples


def card_of(tuner: FineTuner, path: Path, repo: str | None = None) -> str:
    return model_card(schema.read(tuner.save_checkpoint(path)), path.name, repo)


@pytest.fixture
def dogs(class_folder: Any) -> FineTuner:
    folder = class_folder(**{"a|b *c*": 4, "husky": 6})
    tuner = FineTuner("resnet18", weights=None, device="cpu", preprocessing={"crop_size": 32}).replace_head(2)
    tuner.fit(folder, val=0.2, epochs=1, progress=False)
    return tuner


def test_the_hub_reads_the_metadata(dogs: FineTuner, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(card_of(dogs, tmp_path / "dogs.safetensors"))

    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("torch-finetune", "image-classification")
    assert data["license"] == "bsd-3-clause"
    assert data["tags"] == ["torch-finetune", "torchvision", "classification"]
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {"loss": dogs.history[-1]["val_loss"], "accuracy": dogs.history[-1]["val_accuracy"]}


def test_it_says_data_classes_and_settings_after_loading_too(dogs: FineTuner, tmp_path: Path) -> None:
    card = card_of(dogs, tmp_path / "dogs.safetensors")
    again = FineTuner.load_checkpoint(tmp_path / "dogs.safetensors", device="cpu")

    assert card_of(again, tmp_path / "dogs.safetensors") == card
    assert "| training | 8 |" in card
    assert "| validation | 2 |" in card
    assert "| 0 | a\\|b \\*c\\* | 3 |" in card
    assert "| 1 | husky | 5 |" in card
    assert "| optimizer | adamw |" in card
    assert "| crop\\_size | \\[32, 32\\] |" in card
    assert "published under bsd\\-3\\-clause" in card or "published under bsd-3-clause" in card


def test_the_code_of_the_card_runs(dogs: FineTuner, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (block,) = examples(card_of(dogs, tmp_path / "dogs.safetensors"))
    Image.new("RGB", (40, 40)).save("picture.jpg")
    exec(block.code, {})
    assert "husky" in capsys.readouterr().out


def test_a_module_of_your_own_has_to_be_passed(tmp_path: Path) -> None:
    tuner = FineTuner(small_mlp(), device="cpu")
    tuner.fit(gaussian_blobs(), epochs=1, progress=False)
    card = card_of(tuner, tmp_path / "blobs.safetensors")
    assert "model = ...  # your Sequential" in card
    assert 'load_checkpoint("blobs.safetensors", model)' in card
    assert "license:" not in card
    assert "model-index" not in card  # without validation data


@pytest.mark.parametrize("restore_best", [True, False])
def test_the_results_are_those_of_the_weights(restore_best: bool, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    tuner = FineTuner(small_mlp(), device="cpu")
    stopping = EarlyStopping(patience=2, min_delta=9.0, restore_best=restore_best)  # so the first epoch is the best
    tuner.fit(gaussian_blobs(), gaussian_blobs(9), epochs=5, callbacks=stopping, progress=False)

    card = hub.ModelCard(card_of(tuner, tmp_path / "blobs.safetensors"))
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == pytest.approx(tuner.evaluate(gaussian_blobs(9)))
    said = "After epoch 1 of 3, the best one; the training" if restore_best else "After 3 epochs; the training"
    assert said in card.content
    tuner.fit(gaussian_blobs(), gaussian_blobs(9), progress=False)
    assert "After 4 epochs;" in card_of(tuner, tmp_path / "blobs.safetensors")


def test_an_untrained_model_and_a_regression_have_a_card(tmp_path: Path) -> None:
    untrained = card_of(FineTuner(nn.Linear(4, 2), device="cpu"), tmp_path / "a.safetensors")
    assert "Not recorded." in untrained
    tuner = FineTuner(nn.Linear(4, 1), device="cpu")
    tuner.fit((torch.randn(8, 4), torch.randn(8, 1)), epochs=1, progress=False)
    assert "tuner.predict(inputs)" in card_of(tuner, tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("name", "license_id", "page"),
    [("timm/resnet18.a1_in1k", "apache-2.0", "timm/resnet18.a1_in1k"), ("vit_b_16", None, None)],
)
def test_the_license_of_the_base(name: str, license_id: str | None, page: str | None, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("timm")
    with torch.device("meta"):
        origin = {"family": "timm" if "/" in name else "torchvision", "name": name.rpartition("/")[2], "options": {}}
    checkpoint = schema.read(FineTuner(nn.Linear(4, 2), device="cpu").save_checkpoint(tmp_path / "a.safetensors"))
    object.__setattr__(checkpoint.model, "origin", origin)
    card = hub.ModelCard(model_card(checkpoint, "a.safetensors"))
    assert (card.data.license, card.data.base_model) == (license_id, page)
    assert (license_id or "is not known here") in card.content.replace("\\", "")
