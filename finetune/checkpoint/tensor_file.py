"""A sealed safetensors file: a header with a checksum, and the values of tensors.

The layout is described at https://huggingface.co/docs/safetensors; any reader of the format can open the file.

Files are written and read one tensor at a time, so that no second copy of the values is ever in memory. A header is
judged as a whole before anything is allocated: its extents must cover the file exactly. A file whose values come in
any order, and may exceed the memory, is laid out, filled and sealed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import torch
from torch import Tensor

from finetune.digests import byte_chunks

DIGEST = "sha256"

_BLANK = "0" * 64
_METADATA = "__metadata__"
_CHUNK_BYTES = 1 << 24
_MAX_HEADER = 64 << 20  # bytes; that of a model with 100,000 tensors takes 12 MB
_MAX_DIMENSIONS = 64  # as in NumPy
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write tensors and metadata, with a SHA-256 over all bytes, computed with zeros in its own place.

    Args:
        file: Empty file, open for writing at any position.
        tensors: Tensors by name, on any device and of any strides.
        metadata: Strings by name.

    Returns:
        The SHA-256 in hexadecimal.

    Raises:
        ValueError: If a tensor or a name cannot be stored in the format.

    Example:
        >>> import io
        >>> digest = write(file := io.BytesIO(), {"w": torch.arange(3)}, {"made": "today"})
        >>> metadata, tensors = read(file)
        >>> metadata["made"], tensors["w"]
        ('today', tensor([0, 1, 2]))
    """
    ordered = _in_order(tensors)
    header = _header_of(ordered, metadata)
    digest = hashlib.sha256(header)
    file.write(header)
    for tensor in ordered.values():
        for chunk in byte_chunks(tensor):
            digest.update(chunk)
            file.write(chunk)
    _write_digest(file, header, digest.hexdigest())
    return digest.hexdigest()


def lay_out(file: BinaryIO, like: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Write a file that holds zeros, and return its tensors, which are views of it. `seal` it once they have values.

    Args:
        file: Empty file on disk, open for reading and writing.
        like: Tensors of the same dtypes and shapes, by name.
        metadata: Strings by name.

    Raises:
        ValueError: If a tensor or a name cannot be stored in the format.

    Example:
        >>> with open("laid-out.safetensors", "w+b") as file:
        ...     lay_out(file, {"w": torch.zeros(3)}, {})["w"].fill_(2)
        ...     seal(file)
        ...     read(file)[1]["w"]
        tensor([2., 2., 2.])
        tensor([2., 2., 2.])
    """
    ordered = _in_order(like)
    header = _header_of(ordered, metadata)
    ends = [*itertools.accumulate((tensor.nbytes for tensor in ordered.values()), initial=len(header))]
    file.write(header)
    file.flush()
    if hasattr(os, "posix_fallocate"):  # else a full disk would kill the process when it fills the file
        os.posix_fallocate(file.fileno(), 0, ends[-1])
    file.truncate(ends[-1])
    values = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)
    return {
        name: values[begin:end].view(tensor.dtype).view(tensor.shape)
        for (name, tensor), (begin, end) in zip(ordered.items(), itertools.pairwise(ends), strict=True)
    }


def seal(file: BinaryIO) -> None:
    """Write the SHA-256 of a file that was laid out.

    Example:
        >>> import io
        >>> seal(io.BytesIO(b"noise"))
        Traceback (most recent call last):
        finetune.checkpoint.tensor_file.NotSealedError: its header has no checksum
    """
    _, header = _header(file)
    digest = hashlib.sha256(header)
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    _write_digest(file, header, digest.hexdigest())


def read(file: BinaryIO) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a file, on the CPU.

    Raises:
        NotSealedError: If the file has no digest, or is no safetensors file.
        ValueError: If the file is not the one that was written.
        OSError: If it cannot be read.

    Example:
        >>> import io
        >>> read(io.BytesIO(b"noise"))
        Traceback (most recent call last):
        finetune.checkpoint.tensor_file.NotSealedError: its header has no checksum
    """
    metadata, tensors = stream(file)
    return metadata, dict(tensors)


def stream(file: BinaryIO) -> tuple[dict[str, str], Iterator[tuple[str, Tensor]]]:
    """Return the metadata and an iterator over the names and tensors of a file, which ends with an error as in `read`.

    Example:
        >>> import io
        >>> digest = write(file := io.BytesIO(), {"w": torch.arange(3)}, {})
        >>> metadata, tensors = stream(file)
        >>> next(tensors)
        ('w', tensor([0, 1, 2]))
    """
    header, start = _header(file)
    metadata = header.pop(_METADATA)
    return metadata, _tensors(file, header, start, metadata[DIGEST])


def _tensors(file: BinaryIO, header: Mapping[str, Any], start: bytes, expected: str) -> Iterator[tuple[str, Tensor]]:
    size = file.seek(0, 2)
    file.seek(len(start))
    digest = hashlib.sha256(start.replace(_digest_line(expected), _digest_line(_BLANK), 1))
    for name, dtype, shape in _extents(header, size - len(start)):
        tensor = _empty(shape, dtype)
        for chunk in byte_chunks(tensor):
            if file.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
                raise ValueError("it ends too early")
            digest.update(chunk)
        yield name, tensor
    if digest.hexdigest() != expected:
        raise ValueError("its content does not match its checksum")


def read_metadata(file: BinaryIO) -> dict[str, str]:
    """Return the metadata of a file by its header alone, which may be damaged.

    Raises:
        NotSealedError: If the file has no digest, or is no safetensors file.
    """
    return dict(_header(file)[0][_METADATA])


class NotSealedError(ValueError):
    """A file has no header with a digest, so that this package did not write it."""


def _digest_line(digest: str) -> bytes:
    return f'"{DIGEST}":"{digest}"'.encode()


def _write_digest(file: BinaryIO, header: bytes, digest: str) -> None:
    file.seek(header.index(_digest_line(_BLANK)))
    file.write(_digest_line(digest))


def _in_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in the order of a file, which keeps values aligned."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def _header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {_METADATA: {DIGEST: _BLANK, **metadata}}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"the tensor {name} is {tensor.dtype}, {tensor.layout}, on {tensor.device}")
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    plain = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    plain += b" " * (-len(plain) % 8)
    if len(plain) > _MAX_HEADER:
        raise ValueError(f"names and plain values take {len(plain):,} bytes of at most {_MAX_HEADER:,}")
    return len(plain).to_bytes(8, "little") + plain


def _header(file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Return the parsed header, and the bytes that the file begins with."""
    file.seek(0)
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) == 8 and length <= _MAX_HEADER:
        start += file.read(length)
        try:
            header = json.loads(start[8:].decode(), object_pairs_hook=_once)
            metadata = header[_METADATA]
            sealed = re.fullmatch("[0-9a-f]{64}", metadata[DIGEST]) and len(start) == 8 + length
            if sealed and all(isinstance(value, str) for value in metadata.values()):
                return header, start
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
    raise NotSealedError("its header has no checksum")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:  # sizes whose product exceeds 64 bits, beside one of 0
        raise ValueError(f"a tensor has the shape {shape}") from error


def _is_size(number: Any) -> bool:
    return type(number) is int and number >= 0


def _extents(header: Mapping[str, Any], size: int) -> list[tuple[str, torch.dtype, list[int]]]:
    """Return the name, dtype and shape of every tensor, in the order of the file.

    Raises:
        ValueError: If the extents do not cover `size` bytes exactly once.
    """
    wrong = ValueError("its header does not describe its content")
    end = 0
    found: list[tuple[str, torch.dtype, list[int]]] = []
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
            begin, stop = entry["data_offsets"]
            if type(shape) is not list or len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, [*shape, begin, stop])):
                raise wrong
            if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
                raise wrong
            end = stop
            found.append((name, dtype, shape))
    except (KeyError, TypeError, ValueError):
        raise wrong from None
    if end != size:
        raise wrong
    return found
