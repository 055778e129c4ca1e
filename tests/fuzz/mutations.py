"""Mutations of files: damage to bytes, and changes behind which every checksum is valid again."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from random import Random
from typing import Any

TOKENS = (
    b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b'"', b'""', b",", b";", b"\t", b"\n",
    b"\r", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"nan", b"inf", b"1e400", b"-0",
    b"9" * 5000, b"../../a.png", b"/dev/zero", b"a.png", b"~", b"path", b"text", b"label", b"label_a", b"split",
    b"is_valid", b"train", b"val", b"true", b"|", b"x" * 300,
)  # fmt: skip
"""Bytes that mean something to one of the formats."""

_DIGEST, _METADATA, _CONTENT = "sha256", "__metadata__", "content"
_PNG = b"\x89PNG\r\n\x1a\n"
_WIDTH, _DEPTH = 50, 20


def damaged(rng: Random, content: bytes, times: int | None = None) -> bytes:
    """Return bytes with a few of them flipped, replaced, removed, repeated or inserted."""
    found = bytearray(content)
    for _ in range(times or 1 << rng.randrange(4)):
        at = rng.randrange(len(found) + 1)
        size = min(1 << rng.randrange(7), len(found) - at)
        match rng.randrange(7):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = found[at : at + size] * rng.choice((1, 1, 2, 50))
            case 4:
                found[at : at + rng.choice((0, 4))] = rng.choice(TOKENS)
            case 5:
                number = rng.choice((0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
                found[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
            case _:
                found[at:] = found[at:] if rng.randrange(8) else b""
    return bytes(found)


# ---------------------------------------------------------------------- checkpoints


def unpacked(content: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Return the header and the values of a safetensors file, or None if it has none."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        return (header, content[8 + length :]) if isinstance(header[_METADATA], dict) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def sealed(header: dict[str, Any], values: bytes) -> bytes:
    """Return a safetensors file with a valid checksum."""
    header = {**header, _METADATA: {**header[_METADATA], _DIGEST: "0" * 64}}
    plain = json.dumps(header, separators=(",", ":")).encode()
    plain += b" " * (-len(plain) % 8)
    blank = len(plain).to_bytes(8, "little") + plain + values
    return _with_digest(blank, "0" * 64, hashlib.sha256(blank).hexdigest())


def is_sealed(content: bytes) -> bool:
    """Return whether a file has a valid checksum."""
    found = unpacked(content)
    digest = found and found[0][_METADATA].get(_DIGEST)
    if not isinstance(digest, str) or len(digest) != 64:
        return False
    return hashlib.sha256(_with_digest(content, digest, "0" * 64)).hexdigest() == digest


def _with_digest(content: bytes, old: str, new: str) -> bytes:
    found, wanted = (f'"{_DIGEST}":"{digest}"'.encode(errors="replace") for digest in (old, new))
    return content.replace(found, wanted, 1)


def changed_checkpoint(rng: Random, content: bytes, values: list[Any]) -> bytes:
    """Return a checkpoint with a change to its content, its header or its values, most often with a valid checksum.

    Args:
        rng: Source of randomness.
        content: Content of the file.
        values: Plain values to put in the place of others.
    """
    found = unpacked(content)
    if found is None or not rng.randrange(8):
        return damaged(rng, content)
    header, stored = found
    metadata = dict(header[_METADATA])
    match rng.randrange(8):
        case 0:
            stored = damaged(rng, stored) if rng.randrange(4) else stored[: rng.randrange(len(stored) + 1)]
        case 1:
            header = changed_plain(rng, header, values)
        case 2 if isinstance(metadata.get(_CONTENT), str):
            metadata[_CONTENT] = damaged(rng, metadata[_CONTENT].encode(errors="replace")).decode(errors="replace")
        case _:
            metadata[_CONTENT] = _changed_text(rng, metadata.get(_CONTENT), values, [*header])
    if not isinstance(header, dict) or not isinstance(header.get(_METADATA), dict):
        return damaged(rng, content)
    return sealed({**header, _METADATA: {**header[_METADATA], **metadata}}, stored)


def _changed_text(rng: Random, text: Any, values: list[Any], names: list[str]) -> str:
    try:
        content = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return "{}"
    for _ in range(1 << rng.randrange(3)):
        content = changed_plain(rng, content, [*values, {"$tensor": rng.choice(names)}, {"$tensor": "?"}])
    return json.dumps(content)


def changed_plain(rng: Random, content: Any, values: list[Any]) -> Any:
    """Return dicts and lists with one part of them replaced, removed, repeated or put elsewhere."""
    paths = [path for path, _ in parts(content)]
    path = rng.choice(paths)
    match rng.randrange(6):
        case 0:
            return _put(content, path, *([] if path else [content]))
        case 1:
            return _put(content, path, _at(content, rng.choice(paths)))
        case 2:
            part = _at(content, path)
            if isinstance(part, list) and part:
                return _put(content, path, part * rng.choice((2, 2, 100)))
            if isinstance(part, dict) and part:
                return _put(content, path, {**part, f"{rng.choice([*part])}x": rng.choice([*part.values()])})
            return _put(content, path, [part])
        case 3:
            return _put(content, path, _near(rng, _at(content, path)))
        case _:
            return _put(content, path, rng.choice(values))


def parts(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Return the path and the value of parts of dicts and lists down to some depth, the whole first."""
    items: Any = content.items() if isinstance(content, dict) else ()
    if isinstance(content, list):
        items = enumerate(content[:_WIDTH])
    if len(at) == _DEPTH:
        items = ()
    return [(at, content), *(found for key, value in items for found in parts(value, (*at, key)))]


def _near(rng: Random, value: Any) -> Any:
    """Return a value that is close to another."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice((value + 1, value - 1, -value, value * 1000, 0.5, 10**30))
    if isinstance(value, str):
        return damaged(rng, value.encode(errors="replace"), 1).decode(errors="replace")
    return {} if isinstance(value, list) else []


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def _put(content: Any, path: tuple[Any, ...], *value: Any) -> Any:
    """Return dicts and lists with another value at a path, or without it."""
    if not path:
        return value[0]
    key, *rest = path
    copied: Any = list(content) if isinstance(content, list) else dict(content)
    if rest or value:
        copied[key] = _put(copied[key], tuple(rest), *value)
    else:
        del copied[key]
    return copied


# ---------------------------------------------------------------------- pictures


def changed_picture(rng: Random, content: bytes) -> bytes:
    """Return an image file with damage; that of a PNG is often behind valid checksums and compression."""
    chunks = _chunks(content)
    if not chunks or not rng.randrange(4):
        return damaged(rng, content)
    k = rng.randrange(len(chunks))
    name, data = chunks[k]
    match rng.randrange(8):
        case 0:
            del chunks[k]
        case 1:
            chunks[k:k] = [chunks[rng.randrange(len(chunks))]] * rng.choice((1, 1, 2, 1000))
        case 2:
            chunks[k] = (rng.choice((b"iCCP", b"zTXt", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fdAT", b"IDAT")), data)
        case 3:
            bomb = b"a\0\0" + zlib.compress(bytes(10_000_000))
            chunks.insert(rng.randint(1, len(chunks)), (rng.choice((b"iCCP", b"zTXt", b"IDAT")), bomb))
        case 4 if name == b"IHDR" and len(data) == 13:
            sizes = [rng.choice((0, 1, 5, 9, 500, 3000, 50_000, 2**31 - 1, 2**31)) for _ in range(2)]
            depth, kind = rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1))
            chunks[k] = (name, struct.pack(">2I2B", *sizes, depth, kind) + data[10:])
        case 5 if name == b"IDAT":
            try:
                rows = zlib.decompress(data)
            except zlib.error:
                rows = data
            chunks[k] = (name, zlib.compress(damaged(rng, rows)))
        case _:
            chunks[k] = (name, damaged(rng, data))
    return _PNG + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    at = len(_PNG)
    while content.startswith(_PNG) and at + 12 <= len(content) and len(found) < 5000:
        (size,) = struct.unpack_from(">I", content, at)
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    return found
