"""Clients of a server in one process: requests over raw connections, and 200 clients at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.serving.server import Server

_PATIENCE = 90.0  # seconds for an answer
_SECONDS_PER_SAMPLE = 0.5  # of the memory

Response = tuple[int, dict[str, str], bytes]
Shares = dict[str, float]


@dataclass
class Load:
    """The outcome of a load.

    Attributes:
        seconds: Seconds per answered request, including the waits after a 503.
        busy: Number of answers with the status 503.
        unhelpful: Number of those without a time to wait.
        lost: Number of requests without an answer, or with another status.
        difference: Largest difference of a probability to the one of a lone request.
        megabytes: Resident memory of the server over time.
        duration: Seconds from the first request to the last answer.
    """

    seconds: list[float] = field(default_factory=list)
    busy: int = 0
    unhelpful: int = 0
    lost: int = 0
    difference: float = 0.0
    megabytes: list[float] = field(default_factory=list)
    duration: float = 0.0


def form(content: bytes, filename: str = "photo.jpg") -> bytes:
    """Return the bytes of a request that uploads a file in a form, as a browser does."""
    head = f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
    return post(head.encode() + content + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge")


def post(body: bytes, kind: str, path: str = "/api/predict") -> bytes:
    """Return the bytes of a request with a body."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def get(path: str) -> bytes:
    """Return the bytes of a request for a page."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


async def send(port: int, request: bytes) -> Response:
    """Send a request over a connection of its own, and return the status, headers and body of the response.

    Raises:
        OSError: If the connection ends without a response.
        TimeoutError: If it takes too long.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await asyncio.wait_for(_exchanged(reader, writer, request), _PATIENCE)
    finally:
        writer.close()


async def load(server: Server, files: Sequence[bytes], alone: Sequence[Shares], clients: int, seconds: float) -> Load:
    """Let clients ask for some seconds, each its next question after an answer, and return the outcome."""
    outcome, begun = Load(), time.perf_counter()
    watching = asyncio.create_task(_watch(server, outcome))
    requests = [form(file) for file in files]
    await asyncio.gather(
        *(_client(server, requests, alone, place, begun + seconds, outcome) for place in range(clients))
    )
    outcome.duration = time.perf_counter() - begun
    watching.cancel()
    return outcome


def shares(body: bytes) -> Shares:
    """Return the probabilities of the first answer in a body, by class."""
    answer: dict[str, Any] = json.loads(body)["answers"][0]
    return {each["name"]: each["probability"] for each in answer["classes"]}


def difference(one: Shares, other: Shares) -> float:
    """Return the largest difference of a probability, or 1 if the classes differ."""
    return max(abs(one[name] - other[name]) for name in one) if one.keys() == other.keys() else 1.0


async def _client(
    server: Server, requests: Sequence[bytes], alone: Sequence[Shares], place: int, end: float, outcome: Load
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    while time.perf_counter() < end:
        place = (place + 1) % len(requests)
        begun = time.perf_counter()
        try:
            while True:
                status, headers, body = await asyncio.wait_for(
                    _exchanged(reader, writer, requests[place]), timeout=_PATIENCE
                )
                if status != 503:
                    break
                outcome.busy += 1
                outcome.unhelpful += "retry-after" not in headers
                await asyncio.sleep(float(headers.get("retry-after", 1)))
        except (OSError, TimeoutError, asyncio.TimeoutError):  # the same from Python 3.11 on
            outcome.lost += 1
            return
        if status != 200:
            outcome.lost += 1
            continue
        outcome.seconds.append(time.perf_counter() - begun)
        outcome.difference = max(outcome.difference, difference(alone[place], shares(body)))
    writer.close()


async def _watch(server: Server, outcome: Load) -> None:
    while True:
        outcome.megabytes.append(server.megabytes)
        await asyncio.sleep(_SECONDS_PER_SAMPLE)


async def _exchanged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Response:
    try:
        writer.write(request)
        await writer.drain()
    except ConnectionError:  # refused before it was sent whole; the answer may be there
        pass
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("the connection ended within a response") from error
    return int(first.split()[1]), headers, body
