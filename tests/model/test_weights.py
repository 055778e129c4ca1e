"""Weights files from other tools: read without running code, loaded without silent losses."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models

from finetune.errors import CheckpointError
from finetune.model.weights import load_weights, read_weights
from tests.helpers.files import SPECIAL, Touch, make_special

State = dict[str, Tensor]


def small(classes: int = 5) -> models.ResNet:
    return models.ResNet(models.resnet.BasicBlock, [1, 0, 0, 0], num_classes=classes)


def saved(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def same(model: nn.Module, state: State) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def wrapped(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "lr": 0.1},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "model_ema": lambda state: {"model_ema": state},
    "nested": lambda state: {"state_dict": {"model": state}},
    "DataParallel": lambda state: wrapped(state, "module."),
    "DataParallel in state_dict": lambda state: {"state_dict": wrapped(state, "module.")},
    "Lightning": lambda state: {"state_dict": wrapped(state, "model.")},
    "compiled": lambda state: wrapped(state, "_orig_mod."),
    "compiled in DataParallel": lambda state: wrapped(state, "module._orig_mod."),
    "DataParallel compiled": lambda state: wrapped(state, "_orig_mod.module."),
}


@pytest.mark.parametrize("form", FORMS)
def test_keys_and_prefixes_of_training_scripts_are_stripped(form: str, tmp_path: Path) -> None:
    state, model = small().state_dict(), small()
    load_weights(model, read_weights(saved(tmp_path / "w.pth", FORMS[form](state))))
    assert same(model, state)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_safetensors(prefix: str, tmp_path: Path) -> None:
    state, model = small().state_dict(), small()
    load_weights(model, read_weights(saved(tmp_path / "w.safetensors", wrapped(state, prefix))))
    assert same(model, state)


def test_a_prefix_of_the_model_itself_is_kept(tmp_path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)

    state, model = Holder().state_dict(), Holder()
    load_weights(model, read_weights(saved(tmp_path / "w.pth", state)))
    assert same(model, state)


@pytest.mark.parametrize("n", [3, 5, 1000])
def test_the_head_is_resized_to_match_the_file(n: int, caplog: pytest.LogCaptureFixture) -> None:
    state, model = small(n).state_dict(), small()
    load_weights(model, state)
    assert same(model, state)
    assert model.fc.out_features == n
    assert not caplog.records


# ---------------------------------------------------------------- missing and unexpected weights


def test_trap_23_weights_that_match_nothing_are_an_error_with_counts() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count = len(before)
    missing = sum(not name.endswith("num_batches_tracked") for name in before)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, {"a": torch.zeros(1), "b": torch.zeros(1)})
    message = str(caught.value)
    assert "do not fit ResNet" in message
    assert f"0 of {count} matched, {missing} missing, 2 unexpected, 0 of another shape" in message
    assert same(model, before)
    with pytest.raises(CheckpointError, match="0 of"):
        load_weights(model, {})


def test_trap_23_a_missing_weight_of_the_backbone_is_an_error() -> None:
    state = small().state_dict()
    del state["layer1.0.conv1.weight"]
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"1 missing, 0 unexpected.*The first are: layer1.0.conv1.weight\."):
        load_weights(model, state)
    assert same(model, before)


def test_trap_23_a_missing_head_and_unexpected_weights_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    model = small()
    head = model.fc.weight.clone()
    state = {name: value for name, value in small().state_dict().items() if not name.startswith("fc.")}
    with caplog.at_level(logging.WARNING, "finetune"):
        load_weights(model, {**state, "extra.weight": torch.zeros(1)})
    (record,) = caplog.records
    assert "matched, 2 missing, 1 unexpected. The first are: extra.weight, fc.bias, fc.weight." in record.getMessage()
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_batch_counters_may_be_missing(caplog: pytest.LogCaptureFixture) -> None:
    state = {name: value for name, value in small().state_dict().items() if "num_batches" not in name}
    load_weights(small(), state)
    assert not caplog.records


@pytest.mark.parametrize("name", ["conv1.weight", "fc.weight", "bn1.bias"])
def test_another_shape_is_an_error(name: str) -> None:
    state = {**small().state_dict(), name: torch.zeros(5, 3)}
    with pytest.raises(CheckpointError, match=rf"1 of another shape. The first are: {name}"):
        load_weights(small(), state)


def test_a_model_without_a_head_ignores_that_of_the_file(caplog: pytest.LogCaptureFixture) -> None:
    state, model = small().state_dict(), small()
    model.fc = nn.Identity()
    with caplog.at_level(logging.WARNING, "finetune"):
        load_weights(model, state)
    assert "0 missing, 2 unexpected. The first are: fc.bias, fc.weight." in caplog.records[0].getMessage()
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_a_model_of_no_family_needs_every_weight() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    load_weights(model, model.state_dict())
    with pytest.raises(CheckpointError, match=r"1 missing"):
        load_weights(model, {name: value for name, value in model.state_dict().items() if name != "1.bias"})
    with pytest.raises(CheckpointError, match=r"2 of another shape. The first are: 1.bias, 1.weight"):
        load_weights(model, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 4)).state_dict())


# ---------------------------------------------------------------- unsafe and damaged files


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("beside_weights", [False, True])
def test_trap_24_no_code_in_a_file_is_run(suffix: str, old_format: bool, beside_weights: bool, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    content: Any = {**small().state_dict(), "more": Touch(touched)} if beside_weights else Touch(touched)
    path = tmp_path / f"w{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(CheckpointError, match=r"holds objects .* unpickling those could run code") as caught:
        read_weights(path)
    assert not touched.exists()
    assert "weights_only" not in str(caught.value)  # torch's advice to run it is left out
    torch.load(path, weights_only=False)
    assert touched.exists()  # without weights_only it does run


def test_trap_24_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read as a weights file"):
        read_weights(saved(tmp_path / "w.pth", nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "holds a list. Expected a state dict"),
        (torch.zeros(1), "holds a Tensor. Expected a state dict"),
        ({}, "holds a dict. Expected a state dict"),
        ({"state_dict": {}}, "holds a dict. Expected a state dict"),
        ({"a": torch.zeros(1), "b": 3, "c": "x", "d": None, "e": 1.5}, "b, c, d and 1 more are not tensors"),
    ],
)
def test_anything_but_a_state_dict_is_an_error(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_weights(saved(tmp_path / "w.pth", content))


@given(st.binary(max_size=60), st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x08\0\0\0\0\0\0\0{"]))
def test_every_damaged_file_raises_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, head: bytes
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("w.pth", "w.safetensors"):
        (folder / name).write_bytes(head + tail)
        with pytest.raises(CheckpointError, match=r"w\.\w+"):
            read_weights(folder / name)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_file_is_an_error(name: str, share: float, tmp_path: Path) -> None:
    path = saved(tmp_path / name, nn.Linear(20, 20).state_dict())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=name):
        read_weights(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_only_a_regular_file_holds_weights(tmp_path: Path, name: str, kind: str) -> None:
    make_special(tmp_path / name, kind)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read as a weights file: .*{kind}"):
        read_weights(tmp_path / name)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"weight": torch.zeros(500, 500)})
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in whole.infolist():
            bomb.writestr(entry.filename, whole.read(entry))
    assert read_weights(path)["weight"].shape == (500, 500)
    with pytest.raises(CheckpointError, match=r"b\.pth cannot be read .*it is compressed, and would take 1,0"):
        read_weights(tmp_path / "b.pth")


@pytest.mark.parametrize("huge", [torch.zeros(1, 1).expand(10**9, 512), torch.zeros(10**9, 512, device="meta")])
def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path, huge: Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"w\.pth is damaged: fc\.weight \[1000000000, 512\] would be larger"):
        read_weights(saved(tmp_path / "w.pth", {"fc.weight": huge}))


def test_a_head_of_absurd_shape_is_not_built() -> None:
    model = small()
    state = {**model.state_dict(), "fc.weight": torch.zeros(10**9, 0)}
    with pytest.raises(CheckpointError, match=r"1 of another shape. The first are: fc\.weight"):
        load_weights(model, state)


def test_a_layer_that_requires_its_version_is_loaded(tmp_path: Path) -> None:
    """MNASNet refuses a state dict without layer versions, which a file of plain tensors does not hold."""
    theirs = models.mnasnet0_5(weights=None)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    model = models.mnasnet0_5(weights=None)
    load_weights(model, read_weights(tmp_path / "w.safetensors"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in theirs.state_dict().items())
