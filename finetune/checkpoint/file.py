"""Store nested dicts, lists and tensors in a single safetensors file, written atomically and verified on load.

Tensors become the tensors of a safetensors file (https://huggingface.co/docs/safetensors), named by their
path. Everything else becomes JSON in its metadata, which refers to the tensors by name. There is no pickle,
so loading runs no code.

The metadata also holds a SHA-256 over all bytes of the file, computed with zeros in its own place. If any byte
is changed, lost or added, loading fails.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from finetune.digests import sha256
from finetune.errors import CheckpointError
from finetune.naming.paths import local_path

_TENSOR = "$tensor"
_RESERVED = (_TENSOR, "__metadata__")  # our mark for a tensor, and the key of the metadata
_HASH = "sha256"
_BLANK = "0" * 64


class Stored(NamedTuple):
    """Content of a file, with the version of its format."""

    version: int
    content: dict[str, Any]


def check_writable(path: Path) -> None:
    """Check that a checkpoint can be written to `path`, before time is spent on training.

    Raises:
        CheckpointError: If the path is not writable.
    """
    path = local_path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(f"'{path}' is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}. Expected the path of a file.") from error


def write(path: Path, content: Mapping[str, Any], *, version: int = 1) -> None:
    """Write `content` to `path`. An existing file stays intact until the new one is complete.

    The new file is staged in the same folder, flushed to disk and renamed.

    Args:
        content: Dicts and lists of tensors, numbers, strings and None.
        version: Version of the format of `content`.

    Raises:
        CheckpointError: If the content cannot be stored or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise CheckpointError(f"{path} cannot be written: {error}.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_sealed(_serialized(content, version)))
            file.flush()
            os.fsync(file.fileno())
        Path(staged).chmod(0o644)
        Path(staged).replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}. An existing file is unchanged.") from error
    finally:
        with suppress(FileNotFoundError):
            Path(staged).unlink()


def is_checkpoint(path: Path) -> bool:
    """Return whether the file at `path` is a checkpoint, by its header alone."""
    with suppress(OSError, CheckpointError), path.open("rb") as file:
        start = file.read(8)
        return _HASH in _metadata(path, start + file.read(min(int.from_bytes(start, "little"), path.stat().st_size)))
    return False


def read(path: Path) -> Stored:
    """Read the file at `path`, with tensors on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged or not a checkpoint.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise CheckpointError(f"The checkpoint {path} cannot be read: {getattr(error, 'strerror', error)}.") from error
    header = _metadata(path, data)
    if sha256(_with_digest(data, header[_HASH], _BLANK)) != header[_HASH]:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum. Use another copy.")
    plain = json.loads(header["content"])
    return Stored(plain["version"], _restored(plain["content"], safetensors.torch.load(data)))


def _serialized(content: Mapping[str, Any], version: int) -> bytes:
    tensors: dict[str, Tensor] = {}
    plain = json.dumps({"version": version, "content": _extracted(content, (), tensors)})
    metadata = {"format": "pt", "content": plain, _HASH: _BLANK}
    try:
        return safetensors.torch.save(tensors, metadata)
    except (KeyError, ValueError) as error:  # a dtype or a name that the format does not support
        raise CheckpointError(f"The tensors cannot be stored in the safetensors format: {error}.") from error


def _extracted(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of `value` to `tensors`, and leave their names in their place."""
    if isinstance(value, Tensor):
        name = _name(path)
        tensors[name] = _stored(value, name)
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


def _stored(tensor: Tensor, name: str) -> Tensor:
    try:
        # The format does not allow shared memory, so each name of a tied weight gets its own copy.
        return tensor.detach().to("cpu", copy=True).contiguous()
    except (RuntimeError, NotImplementedError) as error:  # sparse, or on the meta device
        raise CheckpointError(f"The tensor {name} cannot be stored: {error}") from error


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(item, tensors) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _restored(item, tensors) for key, item in value.items()}
    return value


def _sealed(data: bytes) -> bytes:
    """Return `data` with its digest in place of the blank one."""
    return _with_digest(data, _BLANK, sha256(data))


def _with_digest(data: bytes, old: str, new: str) -> bytes:
    return data.replace(f'"{_HASH}":"{old}"'.encode(), f'"{_HASH}":"{new}"'.encode(), 1)


def _metadata(path: Path, data: bytes) -> dict[str, str]:
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if {"content", _HASH} <= metadata.keys() and re.fullmatch("[0-9a-f]{64}", metadata[_HASH]):
            return dict(metadata)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise CheckpointError(
        f"{path} is not a checkpoint of this package, or it is damaged. For weights from elsewhere, use "
        f"FineTuner(..., weights='FILE')."
    )


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, on systems that can flush a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
