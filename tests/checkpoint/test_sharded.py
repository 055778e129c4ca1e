"""Divided tensors in files of their own: any number of processes reads them, and damage is noticed by all."""

from __future__ import annotations

import functools
import json
import operator
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from finetune import ArgumentError, CheckpointError
from finetune.checkpoint import file, sharded, tensor_file
from finetune.distributed.divided import local, whole
from finetune.distributed.world import ALONE, join
from finetune.nested import map_tensors
from tests.helpers.worlds import in_processes

CPU = torch.device("cpu")
ANOTHER = "another.safetensors"
NAME = "whole.safetensors"


def _content(shift: float = 0.0) -> dict[str, Any]:
    """Return content with tensors of which a process holds more rows, one or none."""
    weight = torch.arange(15.0).reshape(5, 3) + shift
    model = {"a/b": weight, "tied": weight, "one": torch.ones(1), "none": torch.zeros(0, 4)}
    half = torch.linspace(0, 1, 6, dtype=torch.bfloat16).reshape(3, 2)
    return {"model": model, "training": {"moment": 2 * weight, "half": half, "step": torch.tensor(7)}, "rows": [1, "b"]}


def _divided(content: dict[str, Any]) -> Any:
    mesh = init_device_mesh("cpu", (join("fsdp", CPU).size,))
    return map_tensors(lambda t: distribute_tensor(t, mesh, [Shard(0)]) if t.dim() else t, content, None)


def _save(path: Path, shift: float = 0.0, **options: Any) -> None:
    file.write_sharded(path, _divided(_content(shift)), join("fsdp", CPU), version=3, **options)


def _bits(content: Any) -> Any:
    return map_tensors(lambda t: (t.dtype, t.tolist()), content, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two sharded checkpoints, one of which has been written three times, once in vain."""
    folder = tmp_path_factory.mktemp("sharded")

    def save(rank: int) -> str:
        path, world = folder / NAME, join("fsdp", CPU)
        for shift in (2.0, 1.0):
            _save(path, shift, keep_as=folder / "previous.safetensors")
        wrong = _divided({"model": {"a": torch.ones(2, dtype=torch.complex128)}})
        with pytest.raises(CheckpointError) as error:
            file.write_sharded(path, wrong, world)
        if world.leads:
            assert len([*folder.glob("*.shards")]) == 2
            # An interrupted run has left its shards.
            (folder / f"{NAME}-0123456789ab.shards").mkdir()
        _save(path, keep_as=folder / "previous.safetensors")
        _save(folder / ANOTHER, 9.0)
        return str(error.value)

    said = in_processes(2, save)
    assert said[0] == said[1]
    assert "cannot store this checkpoint: the tensor model/a is torch.complex128" in said[0]
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copied")
    return tmp_path / "copied" / NAME


def _layout(path: Path) -> dict[str, Any]:
    with path.open("rb") as opened:
        return json.loads(tensor_file.read_metadata(opened)["shards"])


def _shards(path: Path) -> list[Path]:
    """Return the files of the shards of a checkpoint."""
    layout = _layout(path)
    return [path.parent / layout["folder"] / name for name in layout["files"]]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_read_and_gathered_as_a_single_file(folder: Path, tmp_path: Path):
    single, gathered = tmp_path / "single.safetensors", tmp_path / "gathered.safetensors"
    file.write(single, _content(), version=3)
    file.gather(folder / NAME, gathered)
    assert gathered.read_bytes() == single.read_bytes()
    assert _bits(file.read(folder / NAME)) == _bits(file.read(single))
    assert file.peek(folder / NAME) == file.peek(single)
    assert (file.shards_of(folder / NAME), file.shards_of(single)) == (_shards(folder / NAME)[0].parent, None)


def test_only_shards_of_present_files_are_kept(folder: Path):
    names = ("previous.safetensors", NAME, ANOTHER)
    assert {path.parent for name in names for path in _shards(folder / name)} == set(folder.glob("*.shards"))
    assert len([*folder.iterdir()]) == 6
    assert file.read(folder / "previous.safetensors").content["model"]["tied"][0, 0] == 1


def test_a_process_that_is_killed_while_it_writes_leaves_the_checkpoint_of_before(copied: Path):
    def save(rank: int) -> None:
        join("fsdp", CPU)
        if rank == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which ends a process whose file grows beyond the limit
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        _save(copied, 5.0)

    before = _bits(file.read(copied))
    said = in_processes(2, save)
    assert said[1] == f"ended with -{int(signal.SIGXFSZ)}"
    assert "gloo" in said[0]
    assert _bits(file.read(copied)) == before
    file.write(copied, _content())
    assert not [*copied.parent.glob(f"{NAME}-*.shards")][1:]  # those of the file that keeps the former name


def test_shards_are_kept_for_a_file_of_another_name(copied: Path):
    renamed = copied.rename(copied.with_name("mine"))
    file.write(copied, _content(1.0))
    assert _bits(file.read(renamed).content) == _bits(_content())
    file.gather(renamed, renamed)
    assert file.shards_of(renamed) is None
    assert _bits(file.read(renamed).content) == _bits(_content())


def test_a_part_in_place_of_the_checkpoint(folder: Path):
    for part in (shards := _shards(folder / NAME)[0], shards.parent):
        for read in (file.read, file.peek, lambda path: file.gather(path, folder / "out.safetensors")):
            with pytest.raises(CheckpointError, match=f"Pass the file that names its folder, such as .*{NAME}"):
                read(part)


def test_removed_with_its_shards(copied: Path):
    shards = _shards(copied)
    file.remove(copied)
    assert not copied.exists()
    assert not shards[0].parent.exists()
    file.read(copied.with_name(ANOTHER))


@pytest.mark.parametrize("name", ["", ".", "..", "../a.shards", 3])
def test_a_file_that_names_a_folder_elsewhere_takes_none_with_it(tmp_path: Path, name: Any):
    elsewhere, path = tmp_path / "a.shards", tmp_path / "runs" / "a.safetensors"
    elsewhere.mkdir()
    path.parent.mkdir()
    with path.open("wb") as made:
        tensor_file.write(made, {}, {"content": "{}", "shards": json.dumps({"folder": name})})
    file.remove(path)
    assert elsewhere.is_dir()
    assert path.parent.is_dir()
    assert not path.exists()


def test_each_process_reads_its_part(copied: Path):
    (damaged,) = (path for path in _shards(copied.with_name(ANOTHER)) if path.name == "training-00001.safetensors")
    _flip(damaged)

    def read(rank: int) -> Any:
        world = join("fsdp", CPU)
        with CommDebugMode() as exchanges:
            content = file.read(copied, world, ("training",)).content
        assert not any("all_gather" in str(name) for name in exchanges.get_comm_counts())
        for name, value in _content()["training"].items():
            part = content["training"][name]
            assert _bits(local(part)) == _bits(value.chunk(3)[rank] if value.dim() else value)
            assert _bits(whole(part)) == _bits(value)
        assert _bits(content["model"]) == _bits(_content()["model"])
        with pytest.raises(CheckpointError, match="does not match its checksum"):
            file.read(copied.with_name(ANOTHER), world, ("training",))
        return "done"

    assert in_processes(3, read) == ["done"] * 3


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: shutil.rmtree(path.parent), r"its folder .*\.shards is not beside it"),
        (Path.unlink, "or lacks files"),
        (_flip, "does not match its checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
        (lambda path: shutil.copy(_shards(path.parents[1] / ANOTHER)[0], path), "is of another checkpoint"),
    ],
    ids=["no folder", "no file", "another bit", "too short", "another save"],
)
def test_damage_is_noticed(copied: Path, damage: Callable[[Path], object], said: str):
    damage(_shards(copied)[0])
    out = copied.with_name("out.safetensors")
    with pytest.raises(CheckpointError, match=said):
        file.read(copied)
    with pytest.raises(CheckpointError, match=said):
        file.gather(copied, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("folder",), "../elsewhere.shards"),
        (("folder",), ".."),
        (("files",), {"../a.safetensors": ""}),
        (("files",), []),
        (("tensors", "model/a~1b", "dtype"), "F33"),
        (("tensors", "model/a~1b", "shape"), [10**9, 10**9]),
        (("tensors", "model/a~1b", "shape"), [-5, -3]),
        (("tensors", "model/a~1b", "parts"), []),
        (("tensors", "model/a~1b", "parts", 0, "offsets"), [4, 0]),
        (("tensors", "model/a~1b", "parts", 0, "offsets"), [0]),
        (("tensors", "model/a~1b", "parts", 0, "file"), "other.safetensors"),
        (("tensors", "model/one", "parts", 0, "file"), "training-00000.safetensors"),
    ],
)
def test_a_layout_that_is_made_up_is_refused(folder: Path, keys: tuple[Any, ...], value: Any):
    layout = _layout(folder / NAME)
    functools.reduce(operator.getitem, keys[:-1], layout)[keys[-1]] = value
    with pytest.raises(ValueError, match=r"layout|lacks model/one"):
        sharded.read(folder, layout, world=ALONE, divides=())


def test_machines_without_a_folder_in_common(tmp_path: Path):
    def save(rank: int) -> None:
        sharded.write(tmp_path / str(rank), _divided({"a": torch.ones(2)}))

    assert all("have to share the folder" in said for said in in_processes(2, save))


def test_only_divided_tensors_are_sharded(tmp_path: Path):
    with pytest.raises(ArgumentError, match="Omit sharded to write a single file"):
        file.write_sharded(tmp_path / NAME, _content(), ALONE)
    assert not [*tmp_path.iterdir()]


def test_tensors_like_those_of_a_layout_take_no_memory():
    layout = {"folder": "a.shards", "files": {"a": ""}, "tensors": {}}
    part = {"file": "a", "offsets": [0], "shape": [10**12]}
    layout["tensors"] = {"a": {"dtype": "F32", "shape": [10**12], "parts": [part]}}
    made: Tensor = sharded.zeros_like(layout)["a"]
    assert made.shape == (10**12,)
    assert made.untyped_storage().nbytes() == 4
