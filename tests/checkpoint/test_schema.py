"""The fields of a checkpoint are restored from its file, and older formats are migrated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import CheckpointError, FineTuner
from finetune.checkpoint import file, schema
from finetune.checkpoint.schema import Checkpoint, HeadReplacement, InputAdaptation, LoraAdapters, ModelRecord

X: Tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

NOW = schema.format_version()


def checkpoint(**values: Any) -> Checkpoint:
    record = ModelRecord("Net", {"family": "timm", "name": "n"}, ("stem.weight",), {"stem.weight": torch.ones(2)}, "00")
    defaults: dict[str, Any] = {
        "model": record,
        "heads": ("fc",),
        "changes": (
            InputAdaptation(1),
            HeadReplacement(3, ("fc", "aux"), {"type": "Identity", "arguments": {}}),
            LoraAdapters(4, ("stem",)),
        ),
        "classes": ("cat", "dog"),
        "classes_from_data": True,
        "preprocessing": {"kind": "picture"},
        "settings": {"seed": 1},
        "task": "classification",
        "calibration": {"temperature": 1.5, "thresholds": [0.25, 0.75]},
        "history": ({"epoch": 1, "loss": 0.5},),
        "inputs": {"origin": "given", "trained_on": "ready"},
        "objects": {"loss": "HuberLoss"},
        "training": {"position": {"step": 3}},
    }
    return Checkpoint(**{**defaults, **values})


def test_every_field_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    written = checkpoint()
    schema.write(path, written)
    read = schema.read(path)

    assert read.path == path
    assert torch.equal(read.model.weights["stem.weight"], torch.ones(2))
    assert vars(read.model) == {**vars(written.model), "weights": read.model.weights}
    assert vars(read) == {**vars(written), "model": read.model, "path": path, "version": schema.format_version()}


@pytest.mark.parametrize("field", ["heads", "classes", "preprocessing", "task", "calibration", "training"])
def test_a_field_may_be_none(field: str, tmp_path: Path) -> None:
    schema.write(tmp_path / "f", checkpoint(**{field: None}))

    assert getattr(schema.read(tmp_path / "f"), field) is None


def test_the_digest_of_the_base_is_optional() -> None:
    content = schema.to_content(checkpoint())
    del content["model"]["base"]

    assert schema.from_content(content).model.base is None


@pytest.mark.parametrize("missing", ["model", "heads", "history", "training"])
def test_a_missing_field_is_an_error_that_names_it(missing: str, tmp_path: Path) -> None:
    content = schema.to_content(checkpoint())
    del content[missing]
    file.write(tmp_path / "f", content)

    with pytest.raises(CheckpointError, match=f"does not have the fields of a checkpoint.*'{missing}'"):
        schema.read(tmp_path / "f")


def test_an_unknown_change_is_an_error(tmp_path: Path) -> None:
    content = schema.to_content(checkpoint())
    content["replacements"] = [{"pruned": 0.5}]
    file.write(tmp_path / "f", content)

    with pytest.raises(CheckpointError, match="a change with the keys pruned"):
        schema.read(tmp_path / "f")


def test_a_newer_format_is_an_error(tmp_path: Path) -> None:
    file.write(tmp_path / "f", {}, version=schema.format_version() + 1)

    with pytest.raises(
        CheckpointError, match=rf"format version {NOW + 1}, but this package reads at most {NOW}. Update"
    ):
        schema.read(tmp_path / "f")


# ---------------------------------------------------------------------- a new version of the format


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def write_older(path: Path, written: Path) -> None:
    """Write a checkpoint in an imaginary older format, in which the classes are called `labels`."""
    content = file.read(written).content
    content["labels"] = content.pop("classes")
    file.write(path, content, version=NOW)


def renamed(content: schema.Content) -> schema.Content:
    return {**{key: value for key, value in content.items() if key != "labels"}, "classes": content["labels"]}


def test_a_new_version_is_one_entry_in_the_table_of_migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    tuner = FineTuner(net(), device="cpu")
    tuner.fit((X, ["cat", "dog", "cat"]), progress=False)
    write_older(first, tuner.save_checkpoint(second))

    monkeypatch.setitem(schema.MIGRATIONS, NOW, renamed)

    loaded = FineTuner.load_checkpoint(first, net(), device="cpu")
    assert loaded.classes == ("cat", "dog")
    assert torch.equal(loaded.predict(X), tuner.predict(X))

    loaded.save_checkpoint(second)
    assert file.read(second).version == NOW + 1
    assert torch.equal(FineTuner.load_checkpoint(second, net(), device="cpu").predict(X), tuner.predict(X))

    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f"format version {NOW + 1}, but this package reads at most {NOW}"):
        FineTuner.load_checkpoint(second, net())


def test_migrations_run_one_version_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_task(content: schema.Content) -> schema.Content:
        assert content["classes"] == ["cat", "dog"], "the first migration has run"
        return {**content, "task": "binary"}

    schema.write(tmp_path / "now", checkpoint())
    write_older(tmp_path / "f", tmp_path / "now")
    monkeypatch.setitem(schema.MIGRATIONS, NOW, renamed)
    monkeypatch.setitem(schema.MIGRATIONS, NOW + 1, with_task)

    assert schema.read(tmp_path / "f").task == "binary"
    assert schema.format_version() == NOW + 2


@pytest.mark.parametrize(
    ("preprocessing", "history", "trained_on"),
    [(None, [{"epoch": 1}], "ready"), (None, [], None), ({"kind": "picture"}, [{"epoch": 1}], None)],
)
def test_a_model_of_version_1_without_preprocessing_was_trained_on_ready_inputs(
    preprocessing: Any, history: list[Any], trained_on: str | None
) -> None:
    content = schema.MIGRATIONS[1]({"preprocessing": preprocessing, "history": history})
    assert content["inputs"]["trained_on"] == trained_on
    assert content["objects"] == {}
