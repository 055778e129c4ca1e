from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune import CheckpointError
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
