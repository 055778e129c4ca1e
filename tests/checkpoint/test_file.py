"""The file of a checkpoint: content is restored exactly, and damage is always detected."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from finetune import CheckpointError
from finetune.checkpoint import file, tensor_file
from tests.fuzz.mutations import sealed, unpacked

QUICK = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip


def same(left: Any, right: Any) -> bool:
    """Return whether two nestings are equal bit for bit, including types and order."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*bits)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right) or (isinstance(left, float) and math.isnan(left) and math.isnan(right))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    tensor = torch.randint(-3, 4, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))
    return tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor


keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=4).filter(lambda key: key != "$tensor") | (
    st.sampled_from(["a", "a/b", "b", "~", "~1", "sha256", "version", "content"])
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | tensors()
contents = st.dictionaries(
    keys, st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
)


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, bytes]:
    """Return the path of a small checkpoint and its bytes."""
    path = tmp_path / "whole.safetensors"
    file.write(path, {"w": torch.arange(3, dtype=torch.uint8), "n": 1})
    return path, path.read_bytes()


@QUICK
@given(content=contents)
def test_content_is_restored_exactly(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "any.safetensors"
    file.write(path, content)

    assert same(file.read(path).content, content)


def test_keys_with_slashes_do_not_collide(tmp_path: Path) -> None:
    content = {"a/b": torch.zeros(1), "a": {"b": torch.ones(2)}, "a~1b": torch.full((3,), 2.0)}
    file.write(tmp_path / "f", content)

    assert same(file.read(tmp_path / "f").content, content)


def test_a_tuple_comes_back_as_a_list(tmp_path: Path) -> None:
    file.write(tmp_path / "f", {"classes": ("cat", "dog")})

    assert file.read(tmp_path / "f").content == {"classes": ["cat", "dog"]}


def test_tied_and_strided_tensors_are_restored(tmp_path: Path) -> None:
    tied = nn.Linear(3, 3)
    model = nn.Sequential(tied, tied)
    picture = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    half = torch.rand(6)[::2]
    content = {"model": model.state_dict(), "picture": picture, "half": half, "grown": half.expand(2, 3)}
    file.write(tmp_path / "f", content)

    read = file.read(tmp_path / "f").content
    assert torch.equal(read["model"]["0.weight"], tied.weight)
    assert torch.equal(read["model"]["1.weight"], tied.weight)
    assert torch.equal(read["picture"], picture)
    assert torch.equal(read["grown"], half.expand(2, 3))


def test_loaded_tensors_are_writable(whole: tuple[Path, bytes]) -> None:
    file.read(whole[0]).content["w"].add_(1)

    assert whole[0].read_bytes() == whole[1]


def test_the_file_is_plain_safetensors_without_pickle(tmp_path: Path) -> None:
    file.write(tmp_path / "f", {"model": {"fc.weight": torch.ones(2, 2)}, "history": [{"loss": 1.5}]})

    assert torch.equal(safetensors.torch.load_file(tmp_path / "f")["model/fc.weight"], torch.ones(2, 2))
    with safetensors.safe_open(tmp_path / "f", "pt") as opened:
        content = json.loads(opened.metadata()["content"])
    assert content["content"]["history"] == [{"loss": 1.5}]
    with pytest.raises(Exception, match=r"weights_only|Weights only|invalid"):
        torch.load(tmp_path / "f", weights_only=True)


# ---------------------------------------------------------------------- damage


@pytest.mark.no_cover
def test_trap_24_every_flipped_bit_is_detected(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    for bit in range(8 * len(whole[1])):
        damaged = bytearray(whole[1])
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            file.read(path)


def test_every_truncation_is_detected(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    for length in range(len(whole[1])):
        path.write_bytes(whole[1][:length])
        with pytest.raises(CheckpointError):
            file.read(path)


@settings(QUICK, max_examples=300)
@given(data=st.data())
def test_any_damage_is_detected(whole: tuple[Path, bytes], tmp_path: Path, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(whole[1])))
    end = data.draw(st.integers(start, min(len(whole[1]), start + 80)))
    damaged = whole[1][:start] + data.draw(st.binary(max_size=80)) + whole[1][end:]
    path = tmp_path / "damaged"
    path.write_bytes(damaged)

    if damaged == whole[1]:
        file.read(path)
    else:
        with pytest.raises(CheckpointError, match=r"damaged|not a checkpoint"):
            file.read(path)


@settings(QUICK, max_examples=150)
@given(data=st.binary(max_size=60) | st.binary(max_size=60).map(lambda b: len(b).to_bytes(8, "little") + b))
def test_any_bytes_are_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "noise"
    path.write_bytes(data)

    with pytest.raises(CheckpointError, match="not a checkpoint"):
        file.read(path)


@pytest.mark.parametrize(
    "header",
    [
        "[]", "{}", "1", '"a"', '{"__metadata__": 3}', '{"__metadata__": {"content": "{}", "sha256": 64}}',
        '{"__metadata__": {"content": "{}", "sha256": "' + "\\ud800" * 64 + '"}}', "[" * 9999,
    ],
)  # fmt: skip
def test_a_malformed_header_is_an_error(tmp_path: Path, header: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())

    with pytest.raises(CheckpointError, match="not a checkpoint"):
        file.read(path)


def test_another_safetensors_file_is_an_error_with_advice(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "foreign", {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"not a checkpoint of this package.*weights='FILE'"):
        file.read(tmp_path / "foreign")


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": {}}, {"shape": None}, {"shape": 3}, {"shape": "3"}, {"shape": [True] * 3}, {"shape": [3.0]},
        {"shape": [-3, -1]}, {"data_offsets": [0.0, 3]}, {"data_offsets": [False, 3]}, {"data_offsets": [0]},
        {"data_offsets": {}}, {"dtype": ["U8"]}, {"dtype": "U9"},
    ],
)  # fmt: skip
def test_a_sealed_header_that_describes_no_tensor_is_damaged(whole: tuple[Path, bytes], entry: dict[str, Any]) -> None:
    found = unpacked(whole[1])
    assert found is not None
    header, values = found
    whole[0].write_bytes(sealed({**header, "w": {**header["w"], **entry}}, values))

    with pytest.raises(
        CheckpointError, match=r"whole\.safetensors is damaged: its header does not describe its content"
    ):
        file.read(whole[0])


@pytest.mark.parametrize("name", ["gone", [], {}, None, 3])
def test_a_content_that_names_no_tensor_is_damaged(name: Any, whole: tuple[Path, bytes]) -> None:
    plain = json.dumps({"version": 1, "content": {"w": {"$tensor": name}}})
    with whole[0].open("wb") as written:
        tensor_file.write(written, {"w": torch.ones(1)}, {"content": plain})

    with pytest.raises(CheckpointError, match=r"whole\.safetensors is damaged: .* names a tensor that it lacks"):
        file.read(whole[0])


def test_the_version_is_restored(tmp_path: Path) -> None:
    file.write(tmp_path / "f", {}, version=3)

    assert file.read(tmp_path / "f").version == 3


def test_a_missing_file_or_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors cannot be read: No such file"):
        file.read(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        file.read(tmp_path)


# ---------------------------------------------------------------------- failing to write


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": [{"b": object()}]}, "a/0/b is a object, which a checkpoint cannot hold"),
        ({"a": {1, 2}}, "a is a set"),
        ({"a": {1: 2}}, "a has the key 1"),
        ({"a": {"$tensor": "b"}}, "a has the key '.tensor'"),
        ({"__metadata__": torch.ones(1)}, "has the key '__metadata__'"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "the tensor a is torch.float32, torch.(sparse|strided)"),
        ({"a": torch.zeros(2, device="meta")}, "the tensor a is torch.float32, torch.(sparse|strided)"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, "complex128"),
        ({"\ud800": torch.zeros(2)}, "cannot store .* surrogates"),
    ],
)
def test_a_value_that_cannot_be_stored_is_named_and_no_file_is_left(
    whole: tuple[Path, bytes], content: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        file.write(whole[0], content)

    assert [path.name for path in whole[0].parent.iterdir()] == ["whole.safetensors"]
    assert whole[0].read_bytes() == whole[1]


def test_trap_39_a_full_disk_or_a_killed_process_leaves_the_previous_file(whole: tuple[Path, bytes]) -> None:
    """A limit on file sizes simulates a full disk."""
    script = f"""
        import os, resource, signal
        from pathlib import Path
        import torch
        from finetune import CheckpointError
        from finetune.checkpoint import file

        path = Path({str(whole[0])!r})
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        try:
            file.write(path, {{"w": torch.zeros(100_000)}})
        except CheckpointError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            print(error, sorted(path.parent.iterdir()) == [path], flush=True)
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
        file.write(path, {{"w": torch.zeros(1000)}})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, cwd="/"
    )

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "whole.safetensors cannot be written" in done.stdout
    assert "An existing file is unchanged. True" in done.stdout
    assert whole[0].read_bytes() == whole[1]
    assert list(whole[0].parent.glob("*.safetensors")) == [whole[0]]


def test_an_unwritable_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        file.write(tmp_path / "plain" / "f", {})
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="cannot be written"):
        file.write(tmp_path / "folder", {})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "plain"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="cannot be written"):
        file.write(tmp_path / "f", {})
    tmp_path.chmod(0o700)


def test_parent_folders_are_created_and_others_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "f"
    file.write(path, {})

    assert file.read(path).content == {}
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_unwritable_path_is_detected_beforehand(tmp_path: Path) -> None:
    file.check_writable(tmp_path / "new" / "model.safetensors")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "a file").write_text("")
    for path in (tmp_path, tmp_path / "a file" / "model.safetensors"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            file.check_writable(path)
