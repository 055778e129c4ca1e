"""The divided tensors of a checkpoint, in a folder of files that each process writes for itself.

`torch.distributed.checkpoint` plans which process writes and reads which part, in any number of processes. The files
have the format of this package, so nothing is unpickled, and values pass through memory one tensor at a time.

The checkpoint beside the folder holds its layout: the name of the folder, the digest of each file, and the dtype, shape
and parts of each tensor.
"""

from __future__ import annotations

import errno
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load as read_planned
from torch.distributed.checkpoint.state_dict_saver import save as write_planned
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, zeros
from torch.futures import Future

from finetune.checkpoint import tensor_file
from finetune.checkpoint.forms import check_form
from finetune.distributed.world import World
from finetune.files import durable
from finetune.files.regular import opened

Layout = Mapping[str, Any]

_PART = {"file": str, "offsets": [int], "shape": [int]}
_FORM: dict[Any, Any] = {
    "folder": str,
    "files": {...: str},
    "tensors": {...: {"dtype": str, "shape": [int], "parts": [_PART]}},
}


def write(folder: Path, tensors: Mapping[str, Tensor]) -> Layout:
    """Write divided tensors to an empty folder, and return its layout, in the first process. All processes call this.

    Raises:
        OSError: In all processes, if a file cannot be written in one of them.
        ValueError: In all processes, if a tensor cannot be stored in the format.
    """
    writer = _Writer(folder)
    with _own_errors():
        write_planned(dict(tensors), storage_writer=writer)
    return writer.layout


def zeros_like(layout: Layout) -> dict[str, Tensor]:
    """Return tensors of zeros with the dtypes and shapes of a layout. Each takes the memory of a single number.

    Raises:
        ValueError: If the layout is not one that `write` returned.

    Example:
        >>> zeros_like({"folder": "a.shards", "files": {}, "tensors": {}})
        {}
    """
    return {name: torch.zeros((), dtype=dtype).expand(shape) for name, dtype, shape in _described(layout)}


def check_complete(beside: Path, layout: Layout) -> None:
    """Check that the files of a layout are present and hold enough, before memory or disk is allocated for them.

    Args:
        beside: Folder that the folder of the layout is in.
        layout: Layout of the folder.

    Raises:
        OSError: If a file is missing.
        ValueError: If the layout is not one that `write` returned, or the files hold less.

    Example:
        >>> check_complete(Path(), {"folder": "a.shards", "files": {"a": ""}, "tensors": {}})
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] its folder a.shards is not beside it, or lacks files. Keep both together
    """
    described, folder = [*_described(layout)], beside / layout["folder"]
    try:
        present = sum((folder / name).stat().st_size for name in layout["files"])
    except OSError:
        said = f"its folder {folder.name} is not beside it, or lacks files. Keep both together"
        raise FileNotFoundError(errno.ENOENT, said) from None
    if sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in described) > present:
        raise ValueError("its shards hold less than their layout says")


def read(beside: Path, layout: Layout, *, world: World, divides: Collection[str]) -> dict[str, Tensor]:
    """Return tensors from a folder, on the CPU.

    Args:
        beside: Folder that the folder of the layout is in.
        layout: Layout of the folder.
        world: Processes among which tensors are divided. If there are several, all call this.
        divides: First parts of the names of tensors that are divided, evenly along the first dimension.

    Raises:
        ValueError: In all processes of the world, if a file is damaged.
        OSError: In all processes of the world, if a file is missing or cannot be read.
    """
    if failure := world.agreed(_incomplete(beside, layout)):
        raise failure
    mesh = init_device_mesh("cpu", (world.size,)) if world.size > 1 else None
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape in _described(layout):
        if mesh is not None and _key(name) in divides:
            tensors[name] = zeros(shape, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])
        else:
            tensors[name] = torch.zeros(shape, dtype=dtype)
    load(beside, layout, tensors, alone=world.size == 1)
    return tensors


def load(beside: Path, layout: Layout, into: Mapping[str, Tensor], *, alone: bool) -> None:
    """Copy values from a folder into tensors by name.

    Args:
        beside: Folder that the folder of the layout is in.
        layout: Layout of the folder.
        into: Tensors, whole or divided.
        alone: Whether this process is the only one to call this.

    Raises:
        ValueError, OSError: As in `read`.
    """
    with _own_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # which is so if alone
        read_planned(dict(into), storage_reader=_Reader(beside / layout["folder"], layout), no_dist=alone)


class _Writer(StorageWriter):
    """Writes one file per process and top-level key of the names, so that a reader of one key reads nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.layout: Layout = {}

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data=number) for number, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        by_file: defaultdict[str, list[WriteItem]] = defaultdict(list)
        for item in plan.items:
            if _chunk(item).sizes.numel():  # a process may have no part
                by_file[f"{_key(item.index.fqn)}-{plan.storage_data:05d}.safetensors"].append(item)
        results: list[WriteResult] = []
        for name, items in by_file.items():
            with durable.written(self._folder / name) as file:
                parts = {item.index.fqn: planner.resolve_data(item) for item in items}
                digest = tensor_file.write(file, parts, {"format": "pt"})  # type: ignore[arg-type]
            results += [WriteResult(item.index, 0, storage_data=(name, digest)) for item in items]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        written = [result for own in results for result in own]
        file_of = {result.index: result.storage_data[0] for result in written}
        if any(not (self._folder / name).is_file() for name in file_of.values()):
            raise OSError(errno.ENOENT, f"{self._folder} lacks files of other machines, which have to share the folder")
        self.layout = {
            "folder": self._folder.name,
            "files": dict(sorted({result.storage_data for result in written})),
            "tensors": {
                name: {
                    "dtype": tensor_file.DTYPE_NAMES[kept.properties.dtype],
                    "shape": [*kept.size],
                    "parts": [
                        {
                            "file": file_of[MetadataIndex(name, chunk.offsets)],
                            "offsets": [*chunk.offsets],
                            "shape": [*chunk.sizes],
                        }
                        for chunk in kept.chunks
                        if chunk.sizes.numel()
                    ],
                }
                for name, kept in metadata.state_dict_metadata.items()
                if isinstance(kept, TensorStorageMetadata)
            },
        }

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class _Reader(StorageReader):
    """Reads the files that hold a part of the planned tensors, each of them whole, to verify its digest."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._digests, self._tensors = folder, layout["files"], layout["tensors"]
        self._file_of = {
            MetadataIndex(name, part["offsets"]): part["file"]
            for name, entry in self._tensors.items()
            for part in entry["parts"]
        }

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(tensor_file.DTYPES[entry["dtype"]]),
                    torch.Size(entry["shape"]),
                    [
                        ChunkStorageMetadata(torch.Size(part["offsets"]), torch.Size(part["shape"]))
                        for part in entry["parts"]
                    ],
                )
                for name, entry in self._tensors.items()
            }
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: defaultdict[str, defaultdict[str, list[ReadItem]]] = defaultdict(lambda: defaultdict(list))
        for item in plan.items:
            by_file[self._file_of[item.storage_index]][item.storage_index.fqn].append(item)
        for name, wanted in by_file.items():
            self._read_file(name, wanted, planner)
        return _done(None)

    def _read_file(self, name: str, wanted: dict[str, list[ReadItem]], planner: LoadPlanner) -> None:
        with opened(self._folder / name) as file:
            metadata, parts = tensor_file.stream(file)
            if metadata[tensor_file.DIGEST] != self._digests[name]:
                raise ValueError(f"{name} is of another checkpoint")
            for fqn, part in parts:
                for item in wanted.pop(fqn, ()):
                    own = zip(item.storage_offsets, item.lengths, strict=True)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(part[tuple(slice(begin, begin + length) for begin, length in own)])
                    planner.commit_tensor(item, target)
        if wanted:
            raise ValueError(f"{name} lacks {min(wanted)}")

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class _Described(NamedTuple):
    """Name, dtype and shape of a tensor in a layout."""

    name: str
    dtype: torch.dtype
    shape: Sequence[int]


def _described(layout: Layout) -> Iterator[_Described]:
    """Yield the tensors of a layout.

    Raises:
        ValueError: If its names reach elsewhere, or the parts of a tensor do not make it up.
    """
    wrong = ValueError("the layout of its shards is not one")
    try:
        check_form(layout, _FORM)
    except TypeError:
        raise wrong from None
    elsewhere = any(Path(name).name != name for name in layout["files"])
    if elsewhere or not re.fullmatch(r"[^/\\]+\.shards", layout["folder"]):
        raise wrong
    for name, entry in layout["tensors"].items():
        parts = entry["parts"]
        fits = all(_is_within(part, entry["shape"]) and part["file"] in layout["files"] for part in parts)
        filled = sum(math.prod(part["shape"]) for part in parts) == math.prod(entry["shape"])
        if not (fits and filled and entry["dtype"] in tensor_file.DTYPES):
            raise wrong
        yield _Described(name, tensor_file.DTYPES[entry["dtype"]], entry["shape"])


def _is_within(part: Mapping[str, Any], shape: Sequence[int]) -> bool:
    sides = [*zip(part["offsets"], part["shape"], shape, strict=False)]
    right_length = len(part["offsets"]) == len(part["shape"]) == len(shape)
    return right_length and all(begin >= 0 and length >= 0 and begin + length <= side for begin, length, side in sides)


def _incomplete(beside: Path, layout: Layout) -> Exception | None:
    """Return the error of `check_complete`, if it raises one."""
    try:
        check_complete(beside, layout)
    except (OSError, ValueError) as error:
        return error
    return None


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise the error of the first process that failed, in place of the account of all of them."""
    try:
        yield
    except CheckpointException as account:
        error, _ = next(iter(account.failures.values()))
        raise error from None


def _key(name: str) -> str:
    """Return the first part of a tensor's name, which is a path of keys."""
    return name.split("/", maxsplit=1)[0]


def _chunk(item: WriteItem) -> ChunkStorageMetadata:
    assert item.tensor_data is not None  # only tensors are written
    return item.tensor_data.chunk


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
