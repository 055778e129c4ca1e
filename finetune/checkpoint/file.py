"""Store nested dicts, lists and tensors in a single safetensors file, written atomically and verified on load.

Tensors become the tensors of a safetensors file (https://huggingface.co/docs/safetensors), named by their
path. Everything else becomes JSON in its metadata, which refers to the tensors by name. There is no pickle,
so loading runs no code.

The metadata also holds a SHA-256 over all bytes of the file, computed with zeros in its own place. If any byte
is changed, lost or added, loading fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from finetune.checkpoint import tensor_file
from finetune.errors import CheckpointError
from finetune.files import durable
from finetune.files.regular import opened
from finetune.naming.paths import local_path

_TENSOR = "$tensor"
_RESERVED = (_TENSOR, "__metadata__")  # our mark for a tensor, and the key of the metadata
_CONTENT = "content"


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
    tensors: dict[str, Tensor] = {}
    plain = json.dumps({"version": version, "content": _extracted(content, (), tensors)})
    try:
        with durable.written(path, keep_as=keep_as) as file:
            tensor_file.write(file, tensors, {"format": "pt", _CONTENT: plain})
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}. An existing file is unchanged.") from error
    except ValueError as error:  # a type or a name that the format does not support
        raise CheckpointError(f"The safetensors format cannot store this checkpoint: {error}.") from error


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


def read(path: Path) -> Stored:
    """Read the file at `path`, with tensors on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged or not a checkpoint.
    """
    with _named_in_errors(path):
        with opened(path) as file:
            metadata, tensors = tensor_file.read(file)
        return _stored(metadata[_CONTENT], tensors)


@contextmanager
def _named_in_errors(path: Path) -> Iterator[None]:
    """Convert errors of reading a file to a CheckpointError that names it."""
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
