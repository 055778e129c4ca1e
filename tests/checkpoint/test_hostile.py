"""A checkpoint with a valid checksum and hostile content is refused in bounded memory and time, or it works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import CheckpointError, FineTuner
from finetune.checkpoint import file, schema
from tests.helpers import hostile

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and its peak are of Linux")
def test_hostile_content_is_refused() -> None:
    command = [sys.executable, "-m", "tests.helpers.hostile", "97", "load_into", "start", "resume"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]

    assert done.returncode == 0, done.stderr[-2000:]
    assert {way for way, *_ in outcomes} == {"load_into", "start", "resume"}
    assert not [each for each in outcomes if each[2] not in ("loaded", "refused")]
    assert not [each for each in outcomes if each[3] > 20 or each[4] > 200], "seconds, and MB"


CONTENT: dict[str, dict[str, Any]] = {
    "a head of any size": {"replacements": [{"n": 10**7, "names": ["3"], "head": None}]},
    "many heads": {"replacements": [{"n": 3, "names": ["3"], "head": None}] * 2000},
    "heads that grow": {"replacements": [{"n": 200_000, "names": ["3"], "head": None}] * 100},
    "a rank of any size": {"replacements": [{"lora_rank": 10**8, "layers": ["0"]}]},
    "channels": {"replacements": [{"in_channels": 10**9}]},
    "no module": {"replacements": [{"n": 3, "names": ["__class__"], "head": None}]},
    "a removed attribute": {"replacements": [{"n": 3, "names": ["3"], "head": None, "removed": ["training"]}]},
    "a setting that is none": {"settings": {"device": "cpu"}},
    "a path among the settings": {"settings": {"weights": "other.safetensors"}},
    "a number among the classes": {"classes": ["a", 3]},
    "a preprocessing of nothing": {"preprocessing": {"kind": "smell"}},
    "a crop of any size": {"preprocessing": {"crop_size": [10**6, 10**6]}},
    "a crop of a long side": {"preprocessing": {"crop_size": [1, 10**9]}},
    "a resize of any size": {"preprocessing": {"crop_size": [10**6, 10**6], "resize_size": 10**6}},
}


@pytest.mark.parametrize("name", CONTENT)
def test_the_user_s_model_is_unchanged(name: str, tmp_path: Path) -> None:
    path, model = tmp_path / "a.safetensors", hostile.net()
    content = file.read(FineTuner(hostile.net(), device="cpu").save_checkpoint(path)).content
    weights = {key: torch.zeros(1) for key in content["model"]["weights"]}  # fit with none of the changes
    changed = {**content, "model": {**content["model"], "weights": weights}, **CONTENT[name]}
    file.write(path, changed, version=schema.format_version())
    before = {key: value.clone() for key, value in model.state_dict().items()}

    with pytest.raises(CheckpointError, match=r"does not belong to this Sequential|does not have the fields"):
        FineTuner.load_checkpoint(path, model, device="cpu")

    assert str(model) == str(hostile.net())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "origin",
    [
        {"family": "torchvision", "name": "vit_b_16", "options": {"image_size": 16_000}},
        {"family": "torchvision", "name": "resnet18", "options": {"num_classes": 10}},
        {"family": "torchvision", "name": "maskrcnn_resnet50_fpn", "options": {}},
        {"family": "timm", "name": "local-dir:/etc", "options": {}},
        {"family": ["timm"], "name": {}, "options": {}},
    ],
    ids=lambda origin: str(origin["name"]),
)
def test_a_model_by_name_is_built_as_published_and_within_limits(origin: dict[str, Any], tmp_path: Path) -> None:
    path = FineTuner("squeezenet1_1", weights=None, device="cpu").save_checkpoint(tmp_path / "a.safetensors")
    content = file.read(path).content
    file.write(path, hostile.replaced(content, ("model", "source"), origin), version=schema.format_version())

    with pytest.raises(CheckpointError):
        FineTuner.load_checkpoint(path, device="cpu")


def test_a_config_neither_counts_to_millions_nor_names_code() -> None:
    transformers = pytest.importorskip("transformers")
    from finetune.model import catalog

    config = transformers.ViTConfig(hidden_size=16, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1)
    origin = {"family": "huggingface", "name": "v", "class": "ViTForImageClassification", "config": config.to_dict()}
    catalog.rebuild(origin)
    for key, value in {"num_labels": 10**9, "attn_implementation": "someone/kernel"}.items():
        with pytest.raises(CheckpointError, match=key):
            catalog.rebuild({**origin, "config": {**config.to_dict(), key: value}})
