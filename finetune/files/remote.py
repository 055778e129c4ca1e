"""Remote files through fsspec, such as `s3://`, `gs://`, `hf://` and `memory://`."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol

from finetune.errors import DataError

# Pages of the web have no folders, and file:// names a local file. A prefix such as simplecache:: chains protocols.
_URL = re.compile(r"(?!(?:https?|ftp|file):)(?:[a-z][a-z0-9]*::)*[a-z][a-z0-9+.-]+://", re.IGNORECASE)

_CHANGES = ("ETag", "etag", "blob_id", "mtime", "LastModified", "created")  # in the facts that stores give on a file


def is_url(path: Any) -> bool:
    """Return whether a path names a remote file or folder.

    Example:
        >>> is_url("s3://dogs/train"), is_url("https://dogs.com/a.jpg"), is_url("dogs/train")
        (True, False, False)
    """
    return isinstance(path, Url) or (isinstance(path, str) and _URL.match(path) is not None)


class Url(PurePosixPath):
    """A remote file or folder, with the methods of `pathlib.Path` that reading data needs.

    Example:
        >>> (Url("s3://dogs") / "train" / "a.jpg").parent
        Url('s3://dogs/train')
    """

    __slots__ = ()

    def __str__(self) -> str:
        return re.sub(r"^([^/]+:)/+", r"\1//", super().__str__())

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    def exists(self) -> bool:
        """Return whether there is a file or folder."""
        return self._asked("exists")

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        return self._asked("isdir")

    def _asked(self, question: str) -> bool:
        system, path = _located(str(self))
        try:
            return bool(getattr(system, question)(path))
        except Exception as error:  # each store has its own errors, of networks and of rights
            raise _unreadable(str(self), error) from error


class Entry(Protocol):
    """A file or folder in a folder, as `os.scandir` yields it."""

    @property
    def name(self) -> str: ...
    def is_dir(self) -> bool: ...
    def is_file(self, *, follow_symlinks: bool = True) -> bool: ...
    def is_symlink(self) -> bool: ...


@dataclass(frozen=True)
class _RemoteEntry:
    name: str
    kind: str

    def is_dir(self) -> bool:
        return self.kind == "directory"

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self.kind == "file"

    def is_symlink(self) -> bool:
        return False


@contextmanager
def scanned(folder: str | os.PathLike[str]) -> Iterator[Iterator[Entry]]:
    """Yield the entries of a folder, local or remote.

    Raises:
        OSError: If it cannot be read.
    """
    if not is_url(folder := os.fspath(folder)):
        with os.scandir(folder) as entries:
            yield entries
        return
    system, path = _located(folder)
    found = system.ls(path, detail=True)
    yield (_RemoteEntry(PurePosixPath(entry["name"]).name, entry["type"]) for entry in found)


def matching(pattern: Url) -> list[Url]:
    """Return the remote files and folders that match a pattern, in which `**` stands for folders of any depth."""
    system, path = _located(str(pattern))
    return [Url(system.unstrip_protocol(name)) for name in system.glob(path)]


def read(url: str) -> BinaryIO:
    """Return the content of a remote file, which is fetched whole, in one request.

    Raises:
        OSError: If it cannot be read.
    """
    system, path = _located(url)
    file = io.BytesIO(system.cat_file(path))
    file.name = url  # for error messages
    return file


def size_and_time(path: str) -> list[Any]:
    """Return the size of a file and what changes with its content: the time of the last change, or a tag of a store.

    Raises:
        OSError: If there is no such file.
    """
    if not is_url(path):
        state = os.stat(path)
        return [state.st_size, state.st_mtime_ns]
    system, name = _located(path)
    info = system.info(name)
    return [info["size"], str(next((info[key] for key in _CHANGES if key in info), None))]


def _located(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it. A forked process gets its own, as connections are not shared.

    Raises:
        DataError: If a package for the protocol is not installed, or there is no such protocol.
    """
    try:
        from fsspec.core import url_to_fs  # takes a tenth of a second, and few need it
    except ImportError as error:
        raise DataError(f"'{url}' is a remote path; reading it needs fsspec. Run `pip install fsspec`.") from error
    try:
        return url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:  # fsspec names the package, such as s3fs
        raise DataError(f"'{url}' cannot be read: {str(error).rstrip('.')}, for example with `pip install`.") from error
    except ValueError as error:
        raise DataError(
            f"'{url}' cannot be read: {str(error).rstrip('.')}. Expected a local path, or a URL of a protocol that "
            f"fsspec knows, such as s3://, gs:// or hf://."
        ) from error
    except Exception as error:  # some stores connect at once
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: Exception) -> DataError:
    return DataError(f"'{url}' cannot be read ({type(error).__name__}: {error}). Correct the URL.")
