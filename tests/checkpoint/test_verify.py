from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune import CheckpointError, FineTuner
from finetune.checkpoint import file, schema
from finetune.checkpoint.verify import verify
from tests.helpers import hostile


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the content of the checkpoint of a run."""
    return hostile.run_content(tmp_path_factory.mktemp("run"))


def test_it_says_what_the_checkpoint_of_a_run_holds(run: dict[str, Any], tmp_path: Path) -> None:
    file.write(tmp_path / "a.safetensors", run, version=schema.format_version())
    found = verify(tmp_path / "a.safetensors")

    assert found["training state"] == "phase 1, update 2 of the epoch"
    assert found["file"].endswith(f", format version {schema.format_version()}")
    assert found["callbacks"].startswith("EMA, SWA, L2SP, EarlyStopping")


@pytest.mark.parametrize("key", ["position", "callbacks"])
@pytest.mark.parametrize("value", [3, None, [3], {"phase": []}])
def test_a_hostile_training_state_is_refused_or_described(
    run: dict[str, Any], key: str, value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    content = hostile.replaced(run, ("training", key), value)
    file.write(path, content, version=schema.format_version())
    try:
        said = verify(path)["training state"]
    except CheckpointError as error:
        said = str(error)

    assert said.startswith((f"{path} does not have the fields of a checkpoint", "phase 1"))


def test_weights_that_are_nan_are_named(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    path = FineTuner(net, device="cpu").save_checkpoint(tmp_path / "model.safetensors")
    assert "NaN in" not in verify(path)
    stored = file.read(path)
    stored.content["model"]["weights"]["1.bias"][0] = torch.nan
    file.write(path, stored.content, version=schema.format_version())
    assert verify(path)["NaN in"] == "1.bias"
