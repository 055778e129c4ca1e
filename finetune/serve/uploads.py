"""`Limits` of a request, and the samples that are read from it in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.data.preprocessing.base import TEXT
from finetune.serve.errors import RequestError

if TYPE_CHECKING:
    from flask import Request as FlaskRequest


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        file_bytes: Bytes of a file.
        files: Files or texts of a request.
        pixels: Pixels of an image.
        characters: Characters of a text.

    Example:
        >>> Limits(files=2, file_bytes=1000).request_bytes
        67536
    """

    file_bytes: int = 20_000_000
    files: int = 16
    pixels: int = 50_000_000
    characters: int = 20_000

    @property
    def request_bytes(self) -> int:
        """Bytes of a request: the files, and what a form adds to them."""
        return self.files * self.file_bytes + 2**16


@dataclass(frozen=True)
class Upload:
    """A named file or text of a request.

    Attributes:
        name: Name that the client gave it.
        content: Content of the file, or the text.
    """

    name: str
    content: bytes | str


def uploads_of(request: FlaskRequest, kind: str, limits: Limits) -> list[Upload]:
    """Return the files or texts of a request: a form with files, the bytes of one file, or JSON with texts.

    Raises:
        RequestError: If the request has none, too many or too large ones.
    """
    found = list(_texts(request) if kind == TEXT else _files(request))
    if not found:
        expected = '{"texts": ["..."]} as JSON' if kind == TEXT else "files in the form field 'file'"
        raise RequestError(400, "nothing_sent", f"The request holds nothing to answer. Expected {expected}.")
    if len(found) > limits.files:
        raise RequestError(413, "too_many", f"Expected at most {limits.files} at once, but got {len(found)}.")
    return found


def _files(request: FlaskRequest) -> Iterator[Upload]:
    if request.mimetype == "multipart/form-data":
        for file in request.files.getlist("file"):
            yield Upload(file.filename or "file", file.stream.read())
    elif content := request.get_data(cache=False):
        yield Upload("file", content)


def _texts(request: FlaskRequest) -> Iterator[Upload]:
    if request.mimetype == "text/plain":
        given: object = [request.get_data(cache=False).decode("utf-8", "replace")]
    else:
        try:
            body = request.get_json(force=True, silent=True)
        except RecursionError:  # nested too deeply
            body = None
        given = body.get("texts") if isinstance(body, dict) else None
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise RequestError(400, "nothing_sent", 'Expected JSON such as {"texts": ["A good film."]}.')
    for place, text in enumerate(given, 1):
        yield Upload(f"text {place}", text)
