"""Malformed requests by kind, and the answers to them."""

from __future__ import annotations

import asyncio
import io
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from PIL import Image

from benchmarks.serving.clients import form, get, post, send

_AT_ONCE = 8
_FORM = "multipart/form-data; boundary=edge"
_PART = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'


@dataclass
class Refusals:
    """The answers to the requests of a kind.

    Attributes:
        statuses: Number of answers by status; 0 if the connection ended without one.
        explained: Number of answers with a message: JSON from the app, or a sentence from the HTTP server before it.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    explained: int = 0

    @property
    def all_refused(self) -> bool:
        """Whether every request got a clear client error."""
        return all(400 <= status < 500 for status in self.statuses) and self.explained == self.statuses.total()


async def refusals(port: int, photo: bytes, count: int, seed: int = 0) -> dict[str, Refusals]:
    """Send `count` malformed requests, of each kind in turn, and return the answers by kind."""
    found = {kind: Refusals() for kind in KINDS}
    chance, free = random.Random(seed), asyncio.Semaphore(_AT_ONCE)

    async def send_one(kind: str, request: bytes) -> None:
        async with free:
            try:
                status, _, body = await send(port, request)
            except (OSError, TimeoutError, asyncio.TimeoutError):
                status, body = 0, b""
        found[kind].statuses[status] += 1
        found[kind].explained += _is_explained(body)

    kinds = [list(KINDS)[place % len(KINDS)] for place in range(count)]
    await asyncio.gather(*(send_one(kind, KINDS[kind](chance, photo)) for kind in kinds))
    return found


def _is_explained(body: bytes) -> bool:
    try:
        return bool(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return len(body.split()) > 1 and not body.startswith(b"{")


# ---------------------------------------------------------------------- kinds


def _truncated(chance: random.Random, photo: bytes) -> bytes:
    return form(photo[: chance.randrange(1, int(0.9 * len(photo)))])


def _random(chance: random.Random, photo: bytes) -> bytes:
    return form(chance.randbytes(chance.randrange(1, 20_000)))


def _wrong_magic(chance: random.Random, photo: bytes) -> bytes:
    heads = (b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP", b"II*\0", b"PK\3\4", b"%PDF-1.7", b"\x7fELF")
    head = chance.choice(heads)
    return form(head + photo[len(head) :])


def _bomb(chance: random.Random, photo: bytes) -> bytes:
    """Return a small PNG that claims or holds too many pixels, or text that inflates to 100 MB."""
    return form(chance.choice(_bombs()))


@cache
def _bombs() -> list[bytes]:
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    return [file.getvalue(), _png(8, text), _png(60_000), _png(2**31 - 1)]


def _png(side: int, chunks: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(bytes(64))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + chunks + pixels


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _too_large(chance: random.Random, photo: bytes) -> bytes:
    """Return a file of more than 20 MB, or the beginning of a body of a length that is refused."""
    if chance.random() < 0.2:
        return form(bytes(20_000_001))
    size = chance.choice((10**9, 10**12, 10**30))
    return post(b"", _FORM).replace(b"Content-Length: 0", f"Content-Length: {size}".encode())


def _wrong_multipart(chance: random.Random, photo: bytes) -> bytes:
    return chance.choice((
        post(_PART + photo + b"\r\n--edge--\r\n", "multipart/form-data"),
        post(_PART + photo + b"\r\n--edge--\r\n", "multipart/form-data; boundary=other"),
        post(photo, _FORM),
        post(b"--edge\r\n\r\n" + photo[:100] + b"\r\n--edge--\r\n", _FORM),
        post(b"--edge--\r\n", _FORM),
        post((_PART + b"x\r\n") * 1000 + b"--edge--\r\n", _FORM),
        post((_PART + photo + b"\r\n") * 17 + b"--edge--\r\n", _FORM),
    ))  # fmt: skip


def _bad_json(chance: random.Random, photo: bytes) -> bytes:
    bodies = (b"{", b"[]", b"null", b'{"texts": 1}', b'{"file": "a.jpg"}', b"[" * 100_000, b"\xff\xfe{}", b'"\\ud800"')
    return post(chance.choice(bodies), "application/json")


def _bad_host(chance: random.Random, photo: bytes) -> bytes:
    hosts = (
        b"evil.example",
        b"127.0.0.1.evil.example",
        b"a b",
        b"",
        b"[::1",
        b"user@127.0.0.1",
        b"\xff",
        b"localhost/x",
    )
    return form(photo).replace(b"Host: 127.0.0.1", b"Host: " + chance.choice(hosts))


def _wrong_method(chance: random.Random, photo: bytes) -> bytes:
    method = chance.choice((b"GET", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"BREW", b"post"))
    return form(photo).replace(b"POST", method, 1)


def _absent_field(chance: random.Random, photo: bytes) -> bytes:
    return chance.choice((
        form(photo).replace(b'name="file"', b'name="else"'),
        form(b""),
        post(b"", "image/jpeg"),
        post(b"", _FORM),
        post(b"file=a.jpg", "application/x-www-form-urlencoded"),
    ))  # fmt: skip


def _bad_query(chance: random.Random, photo: bytes) -> bytes:
    query = chance.choice(
        (b"top=0", b"top=-1", b"top=x", b"top=%00", b"heatmap=2", b"heatmap=", b"top=1e9", b"top=%ff")
    )
    return form(photo).replace(b"/api/predict", b"/api/predict?" + query, 1)


def _huge_header(chance: random.Random, photo: bytes) -> bytes:
    name = chance.choice((b"X-Long: ", b"Cookie: a=", b"Content-Disposition: "))
    return get("/").replace(b"\r\n\r\n", b"\r\n" + name + b"a" * chance.randrange(300_000, 900_000) + b"\r\n\r\n")


def _broken_http(chance: random.Random, photo: bytes) -> bytes:
    request = form(photo[:1000])
    length = request[request.index(b"Content-Length") : request.index(b"\r\n\r\n")]
    chunked = request.replace(length, b"Transfer-Encoding: chunked")
    return chance.choice((
        request.replace(length, b"Content-Length: -1"),
        request.replace(length, b"Content-Length: many"),
        chunked.replace(b"--edge", b"zz\r\n--edge", 1),
        request.replace(b"Content-Type", b"Content Type", 1),
        request.replace(length, length + b"\r\nTransfer-Encoding: chunked"),
    ))  # fmt: skip


def _unicode_name(chance: random.Random, photo: bytes) -> bytes:
    names = (
        "사모예드.jpg",
        "🐶" * 200,
        "a\u202egpj.exe",
        "..\\..\\x",
        "../../etc/passwd",
        "a\x00b.jpg",
        "%00%ff",
        "x" * 5000,
    )
    return form(chance.randbytes(100), chance.choice(names))


KINDS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "truncated photograph": _truncated,
    "random bytes": _random,
    "wrong magic bytes": _wrong_magic,
    "bomb of pixels or text": _bomb,
    "too large a body": _too_large,
    "wrong multipart": _wrong_multipart,
    "wrong JSON": _bad_json,
    "wrong host": _bad_host,
    "wrong method": _wrong_method,
    "nothing in the field": _absent_field,
    "wrong query": _bad_query,
    "huge header": _huge_header,
    "broken HTTP": _broken_http,
    "odd file name, no image": _unicode_name,
}
