"""Checkpoints of every version of the format load forever.

Version 1 of the format, of release 0.1.0, has one file per kind of model, and an interrupted run. Later versions have a
model and a run with everything that a checkpoint can hold. `expected.json` has the results of the code that wrote the
files. They are never rewritten; a new version of the format adds files of its own, by `python -m tests.helpers.golden`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from finetune import CheckpointError, FineTuner
from finetune.callbacks import EMA, EarlyStopping
from finetune.checkpoint import file, schema
from tests.helpers import golden

FOLDER = Path(__file__).parent / "golden"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())


class Case(NamedTuple):
    """The model to load a file into, None to build it by name, and inputs for predictions."""

    model: Callable[[], nn.Module] | None
    inputs: Tensor
    needs: str = "torch"


def with_custom_head() -> nn.Module:
    return FineTuner(golden.net(), device="cpu").replace_head(3, head=golden.Scaled).model


VECTORS = golden.vectors()[0]
MODELS = {
    "own_module": Case(golden.net, VECTORS),
    "own_module_layers_head": Case(golden.net, VECTORS),
    "own_module_custom_head": Case(with_custom_head, VECTORS),
    "torchvision": Case(None, golden.inputs(3, 3, 64, 64)),
    "torchvision_grey": Case(None, golden.inputs(3, 1, 64, 64)),
    "timm": Case(None, golden.inputs(3, 3, 32, 32), "timm"),
    "huggingface": Case(None, golden.inputs(3, 3, 32, 32), "transformers"),
    "lora": Case(golden.net, VECTORS, "peft"),
    "peft": Case(golden.adapted, VECTORS, "peft"),
}


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[str], Path]:
    def unpack(name: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(gzip.decompress((FOLDER / f"{name}.safetensors.gz").read_bytes()))
        return path

    return unpack


def timeless(history: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_second")} for row in history]


def assert_close(actual: Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_there_is_a_test_for_every_file() -> None:
    assert {path.name.split(".")[0] for path in FOLDER.glob("*.gz")} == {*MODELS, "unfinished_run"} == {*EXPECTED}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_restored(name: str, unpacked: Callable[[str], Path]) -> None:
    pytest.importorskip(MODELS[name].needs)
    build, inputs, _ = MODELS[name]
    expected = EXPECTED[name]
    tuner = FineTuner.load_checkpoint(unpacked(name), None if build is None else build(), device="cpu")

    assert_close(tuner.predict(inputs), expected["predictions"])
    assert list(tuner.classes or ()) == expected["classes"]
    assert tuner.task is not None
    assert tuner.task.kind == expected["task"]
    assert [n for n, p in tuner.inner.named_parameters() if not p.requires_grad] == expected["frozen"]
    preprocessing = tuner.preprocessing and tuner.preprocessing.to_dict()
    assert json.loads(json.dumps(preprocessing)) == expected["preprocessing"]
    assert timeless(tuner.history) == expected["history"]


def test_settings_are_restored(unpacked: Callable[[str], Path]) -> None:
    kept = FineTuner.load_checkpoint(unpacked("own_module"), golden.net(), device="cpu").settings

    assert (kept.metrics, kept.optimizer, kept.weight_decay, kept.seed) == (["accuracy"], "sgd", 0.125, 3)


def test_a_custom_head_needs_the_model(unpacked: Callable[[str], Path]) -> None:
    with pytest.raises(CheckpointError, match="does not belong to this Net"):
        FineTuner.load_checkpoint(unpacked("own_module_custom_head"), golden.net(), device="cpu")


def test_an_interrupted_run_resumes_to_the_same_result(unpacked: Callable[[str], Path]) -> None:
    tuner = FineTuner(golden.net(), metrics=["accuracy"], seed=1, device="cpu", precision="fp32")
    tuner.fit(
        golden.vectors(), golden.vectors(12), epochs=4, batch_size=8, lr=1e-2, cache=False, progress=False,
        callbacks=[EMA(decay=0.75), EarlyStopping(patience=3)], resume_from=unpacked("unfinished_run"),
    )  # fmt: skip
    expected = EXPECTED["unfinished_run"]

    # The bias before the batch norm has no gradient but rounding noise, which Adam scales to whole steps. CPUs differ.
    predictions = torch.tensor(expected["predictions"])
    torch.testing.assert_close(tuner.predict(VECTORS), predictions, rtol=1e-2, atol=5e-3)
    assert list(tuner.classes or ()) == expected["classes"]
    assert len(tuner.history) == len(expected["history"])
    for row, target in zip(timeless(tuner.history), expected["history"], strict=True):
        assert row.pop("phase") == target.pop("phase")
        assert {key: row[key] for key in target} == {key: pytest.approx(v, rel=1e-2) for key, v in target.items()}


def test_the_checkpoint_of_a_run_loads_as_a_model(unpacked: Callable[[str], Path]) -> None:
    tuner = FineTuner.load_checkpoint(unpacked("unfinished_run"), golden.net(), device="cpu")

    assert tuner.predict(VECTORS).shape == (24, 3)
    assert len(tuner.history) == 1


@pytest.mark.parametrize("name", EXPECTED)
def test_the_schema_preserves_all_content(name: str, unpacked: Callable[[str], Path]) -> None:
    version, older = file.read(unpacked(name))
    assert version == 1
    before = golden.structure(older)
    content = older
    for migrate in schema.MIGRATIONS.values():
        content = migrate(content)
    assert golden.structure(older) == before, "a migration leaves what it is given"
    again = schema.to_content(schema.from_content(content))

    assert leaves(again) == leaves(content)


def leaves(value: Any) -> Any:
    """Return a nesting with its tensors and tuples as lists."""
    if isinstance(value, dict):
        return {key: leaves(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [leaves(item) for item in value]
    return value.tolist() if isinstance(value, Tensor) else value


# ---------------------------------------------------------------------- later versions

LATER = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


@pytest.fixture(params=LATER)
def later(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, Any], Path, Path]:
    """Return the expected results of a version, and its files of a run and of a model."""
    folder = FOLDER / request.param
    for name in ("run", "model"):
        content = gzip.decompress((folder / f"{name}.safetensors.gz").read_bytes())
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    expected = json.loads((folder / "expected.json").read_text())
    return expected, tmp_path / "run.safetensors", tmp_path / "model.safetensors"


def test_every_version_has_files() -> None:
    assert [str(version) for version in range(2, schema.format_version() + 1)] == LATER


def test_a_run_of_a_later_version_resumes_to_the_same_result(
    later: tuple[dict[str, Any], Path, Path], tmp_path: Path
) -> None:
    expected, path, _ = later
    tuner = golden.fit(tmp_path, resume_from=path)

    # half precision, whose rounding differs between CPUs
    torch.testing.assert_close(
        tuner.predict(VECTORS), torch.tensor(expected["run"]["predictions"]), rtol=5e-2, atol=1e-2
    )
    assert len(tuner.history) == len(expected["run"]["history"]) == 4
    for row, target in zip(tuner.history, expected["run"]["history"], strict=True):
        assert [row["epoch"], row["phase"]] == [target["epoch"], target["phase"]]
        assert row["lr"] == pytest.approx(target["lr"])
        assert [row["loss"], row["val_loss"]] == pytest.approx([target["loss"], target["val_loss"]], rel=1e-2)


def test_a_model_of_a_later_version_is_restored(later: tuple[dict[str, Any], Path, Path]) -> None:
    expected, _, path = later
    tuner = FineTuner.load_checkpoint(path, device="cpu")

    assert_close(tuner.predict(golden.inputs(3, 1, 64, 64)), expected["model"]["predictions"])
    assert list(tuner.classes or ()) == expected["model"]["classes"]
    if "probabilities" in expected["model"]:  # since version 3, which keeps the temperature
        assert_close(tuner.predict_proba(golden.inputs(3, 1, 64, 64)), expected["model"]["probabilities"])
    assert tuner.preprocessing is not None
    assert tuner.preprocessing.channels == 1  # type: ignore[attr-defined]


def test_the_format_of_today_is_that_of_the_newest_files(tmp_path: Path) -> None:
    """If this fails, the format has changed: add a migration, which makes a new version, and its golden files."""
    for write in (golden.write_run, golden.write_model):
        path = write(tmp_path)
        packed = FOLDER / str(schema.format_version()) / f"{path.name}.gz"
        kept = tmp_path / "kept.safetensors"
        kept.write_bytes(gzip.decompress(packed.read_bytes()))

        assert file.read(path).version == file.read(kept).version
        assert golden.structure(file.read(path).content) == golden.structure(file.read(kept).content)
