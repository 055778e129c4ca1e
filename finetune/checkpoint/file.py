"""Store nested dicts, lists and tensors in a single safetensors file, written atomically and verified on load.

Tensors become the tensors of a safetensors file (https://huggingface.co/docs/safetensors), named by their
path. Everything else becomes JSON in its metadata, which refers to the tensors by name. There is no pickle,
so loading runs no code.

The metadata also holds a SHA-256 over all bytes of the file, computed with zeros in its own place. If any byte
is changed, lost or added, loading fails.

Tensors that are divided among processes may be in a folder of shards beside the file instead, which the metadata
names with its digests. The folder is complete before the file is written, and a new file comes with a new folder, so
a file never refers to half of one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from finetune.checkpoint import tensor_file
from finetune.distributed.divided import check_divided, is_divided
from finetune.distributed.world import ALONE, World
from finetune.errors import CheckpointError
from finetune.files import durable
from finetune.files.regular import opened
from finetune.naming.paths import local_path

_TENSOR = "$tensor"
_RESERVED = (_TENSOR, "__metadata__")  # our mark for a tensor, and the key of the metadata
_CONTENT, _SHARDS = "content", "shards"  # keys of the metadata
_SHARDS_NAME = re.compile(r"(.+)-[0-9a-f]{12}\.shards", re.DOTALL)


class Stored(NamedTuple):
    """Content of a file, with the version of its format."""

    version: int
    content: dict[str, Any]


def check_writable(path: Path) -> None:
    """Check that a checkpoint can be written to `path`, before time is spent on training.

    Raises:
        CheckpointError: If the path is not writable.
    """
    try:
        durable.check_writable(local_path(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}. Expected the path of a file.") from error


def write(path: Path, content: Mapping[str, Any], *, version: int = 1, keep_as: Path | None = None) -> None:
    """Write `content` to `path`. An existing file stays intact until the new one is complete.

    Args:
        content: Dicts and lists of tensors, numbers, strings and None.
        version: Version of the format of `content`.
        keep_as: Name that an existing file is kept under; None to replace it.

    Raises:
        CheckpointError: If the content cannot be stored or the file cannot be written.
    """
    tensors, metadata = _parts(content, version)
    with _write_errors(path):
        _write(path, tensors, metadata, keep_as)
    _remove_unused_shards(path)


def write_sharded(
    path: Path, content: Mapping[str, Any], world: World, *, version: int = 1, keep_as: Path | None = None
) -> None:
    """Write `content` to `path` like `write`, and its divided tensors to a folder beside it, each process its own part.

    All processes call this.

    Raises:
        ArgumentError: If no tensor is divided among the processes.
        CheckpointError: In all processes, if the content cannot be stored or a file cannot be written in one of them.
    """
    from finetune.checkpoint import sharded  # imports much of torch

    tensors, metadata = _parts(content, version)
    divided = {name: tensor for name, tensor in tensors.items() if is_divided(tensor)}
    check_divided(bool(divided))
    folder = world.agreed(_new_shards(path))
    try:
        with _write_errors(path):
            world.written(folder, lambda: _make_shards(folder))
            metadata[_SHARDS] = json.dumps(sharded.write(folder, divided))
            own = {name: tensor for name, tensor in tensors.items() if name not in divided}
            world.written(path, lambda: _write(path, own, metadata, keep_as))
    finally:
        if world.leads:
            _remove_unused_shards(path)


def gather(path: Path, out: Path) -> None:
    """Write a checkpoint with shards as a single file, the same as if it had been written as one.

    Values pass through memory one tensor at a time.

    Raises:
        CheckpointError: If the checkpoint has no shards, or is damaged, or the file cannot be written.
    """
    from finetune.checkpoint import sharded

    with _named_in_errors(path):
        with opened(path) as file:
            metadata, tensors = tensor_file.read(file)
        if _SHARDS not in metadata:
            raise CheckpointError(f"{path} is a single file already. Use it as it is.")
        layout = json.loads(metadata.pop(_SHARDS))
        divided = sharded.zeros_like(layout)
        sharded.check_complete(_beside(path), layout)
    del metadata[tensor_file.DIGEST]
    with _write_errors(out), durable.written(out) as file:
        laid_out = tensor_file.lay_out(file, tensors | divided, metadata)
        for name, tensor in tensors.items():
            laid_out[name].copy_(tensor)
        with _named_in_errors(path):
            sharded.load(_beside(path), layout, {name: laid_out[name] for name in divided}, alone=True)
        tensor_file.seal(file)
    _remove_unused_shards(out)


def remove(path: Path) -> None:
    """Delete a checkpoint, with its shards if it has some."""
    shards = shards_of(path)
    path.unlink()
    if shards is not None:
        shutil.rmtree(shards, ignore_errors=True)


def shards_of(path: Path) -> Path | None:
    """Return the folder that holds the shards of the file at `path`, or None if it has none.

    Raises:
        OSError: If the file cannot be read.
    """
    with suppress(ValueError, KeyError, TypeError), opened(path) as file:
        name: str = json.loads(tensor_file.read_metadata(file)[_SHARDS])["folder"]
        if re.fullmatch(r"[^/\\]+\.shards", name):  # or it would reach elsewhere
            return _beside(path) / name
    return None


def is_checkpoint(path: Path) -> bool:
    """Return whether the file at `path` is a checkpoint, by its header alone."""
    with suppress(OSError, ValueError), opened(path) as file:
        return _CONTENT in tensor_file.read_metadata(file)
    return False


def peek(path: Path) -> Stored:
    """Read the content of the file at `path` by its header alone, with a name in place of every tensor.

    Raises:
        CheckpointError: If the file is missing or not a checkpoint. Most damage is not noticed.
    """
    with _named_in_errors(path):
        with opened(path) as file:
            metadata = tensor_file.read_metadata(file)
        return _stored(metadata[_CONTENT], None)


def read(path: Path, world: World = ALONE, divides: Collection[str] = ()) -> Stored:
    """Read the file at `path` and its shards, with tensors on the CPU.

    Args:
        path: File to read.
        world: Processes that read it together.
        divides: Keys of the content below which sharded tensors are divided among these processes.

    Raises:
        CheckpointError: If the file is missing, damaged or not a checkpoint.
    """
    with _named_in_errors(path):
        with opened(path) as file:
            metadata, tensors = tensor_file.read(file)
        if _SHARDS in metadata:
            from finetune.checkpoint import sharded  # imports much of torch

            layout = json.loads(metadata[_SHARDS])
            tensors |= sharded.read(_beside(path), layout, world=world, divides=divides)
        return _stored(metadata[_CONTENT], tensors)


def _parts(content: Mapping[str, Any], version: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of the content by name, and the metadata that holds everything else."""
    tensors: dict[str, Tensor] = {}
    plain = json.dumps({"version": version, "content": _extracted(content, (), tensors)})
    return tensors, {"format": "pt", _CONTENT: plain}


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], keep_as: Path | None) -> None:
    with durable.written(path, keep_as=keep_as) as file:
        tensor_file.write(file, tensors, metadata)


def _beside(path: Path) -> Path:
    """Return the folder of a file, which may be a link, and of its shards."""
    return Path(os.path.realpath(path)).parent


def _new_shards(path: Path) -> Path:
    return _beside(path) / f"{path.name}-{os.urandom(6).hex()}.shards"


def _make_shards(folder: Path) -> None:
    folder.mkdir(parents=True)
    durable.sync_folder(folder.parent)


def _remove_unused_shards(path: Path) -> None:
    """Remove the shards of earlier files at `path`, also of an interrupted one, that no file beside it names."""
    with suppress(OSError):  # a file that cannot be read may need its shards
        beside = [*_beside(path).iterdir()]
        if old := {each for each in beside if (named := _SHARDS_NAME.fullmatch(each.name)) and named[1] == path.name}:
            for unused in old - {shards_of(each) for each in beside if each.is_file()}:
                shutil.rmtree(unused, ignore_errors=True)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Convert errors of writing a file to a CheckpointError that names it."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}. An existing file is unchanged.") from error
    except ValueError as error:  # a type or a name that the format does not support
        raise CheckpointError(f"The safetensors format cannot store this checkpoint: {error}.") from error


@contextmanager
def _named_in_errors(path: Path) -> Iterator[None]:
    """Convert errors of reading a file to a CheckpointError that names it."""
    for folder in (path, path.parent):
        if owner := _SHARDS_NAME.fullmatch(folder.name):
            raise CheckpointError(
                f"{path} is a part of a sharded checkpoint. Pass the file that names its folder, such as "
                f"{folder.with_name(owner[1])}."
            )
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from error
    except (tensor_file.NotSealedError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of this package, or it is damaged. For weights from elsewhere, use "
            f"FineTuner(..., weights='FILE')."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Use another copy.") from error


def _stored(content: str, tensors: Mapping[str, Tensor] | None) -> Stored:
    """Return the content that a file holds as JSON and tensors, or with their names if the tensors are not read.

    Raises:
        ValueError, KeyError: If it is something else.
    """
    plain = json.loads(content)
    if not isinstance(plain, dict) or type(plain["version"]) is not int or not isinstance(plain["content"], dict):
        raise ValueError("its content has no version")
    return Stored(plain["version"], plain["content"] if tensors is None else _restored(plain["content"], tensors))


def _extracted(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of `value` to `tensors`, and leave their names in their place."""
    if isinstance(value, Tensor):
        name = _name(path)
        tensors[name] = value  # each name of a tied weight gets a copy of its own in the file
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key in _RESERVED:
                raise CheckpointError(
                    f"{_name(path)} has the key {key!r}, which a checkpoint cannot hold. Expected strings other than "
                    f"{' and '.join(_RESERVED)}."
                )
        return {key: _extracted(item, (*path, key), tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_extracted(item, (*path, str(i)), tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        f"{_name(path)} is a {type(value).__name__}, which a checkpoint cannot hold. Expected tensors, numbers, "
        f"strings, and lists and dicts of them."
    )


def _name(path: tuple[str, ...]) -> str:
    """Join keys to a name that is unique to their path, as in JSON Pointer (RFC 6901)."""
    return "/".join(key.replace("~", "~0").replace("/", "~1") for key in path)


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(item, tensors) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            name = value[_TENSOR]
            if not isinstance(name, str) or name not in tensors:
                raise ValueError("its content names a tensor that it lacks")
            return tensors[name]
        return {key: _restored(item, tensors) for key, item in value.items()}
    return value
