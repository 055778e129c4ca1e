"""Paths from the user: `~` expanded, missing files told apart from unusable names, names matched by meaning."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from finetune.errors import ArgumentError
from finetune.files.remote import Url, is_url
from finetune.naming.unicode import normalized

_LONGEST = 32_000 if os.name == "nt" else 4_095  # of whole paths; each name in one has at most 255


def local_path(path: str | bytes | os.PathLike[str]) -> Path:
    """Return a path that the user wrote, with `~` replaced by the home folder, or that of a `file://` URL.

    Every path that enters the package passes here, whether it is read or written.

    Raises:
        ArgumentError: If it is no path, or no file can have this name.

    Example:
        >>> local_path("~/runs").parent == Path.home()
        True
    """
    try:
        plain = os.fsdecode(path)
    except TypeError as error:
        raise ArgumentError(f"Expected a path, but got {path!r}.") from error
    if "\0" in plain:
        raise ArgumentError(f"Expected a path, but got {shortened(plain)!r}, which has a null character.")
    if is_url(plain):
        raise ArgumentError(
            f"Expected a local path, but got the URL {shortened(plain)!r}. URLs are for data that is read. Use a local "
            f"path here, and copy the file, for example with fsspec."
        )
    if plain.lower().startswith("file://"):
        from urllib.request import url2pathname  # takes as long to import as the rest of this room

        plain = url2pathname(urlsplit(plain).path)
    path = Path(os.path.expanduser(plain))
    if any(_length(name) > 255 for name in path.parts) or _length(str(path)) > _LONGEST:
        raise ArgumentError(f"Expected a path, but got {shortened(plain)!r}, which is longer than a path can be.")
    return path


def _length(name: str) -> int:
    return len(name) if os.name == "nt" else len(name.encode(errors="surrogatepass"))


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder is there. A name that no file can have is not."""
    if is_url(path):
        return Url(path).exists()
    try:
        return local_path(path).exists()
    except (OSError, ValueError):  # too long for a file system, or with a null character
        return False


def shortened(path: str | os.PathLike[str], limit: int = 200) -> str:
    """Return a path for a message. The middle of a long one, which may be no path at all, is left out."""
    text = str(path)
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


def existing(path: Path) -> Path | None:
    """Return the path of the file or folder that `path` names, or None if there is none.

    Names that differ only in their Unicode form are the same: macOS writes decomposed letters, and tables seldom do.
    """
    if exists(path):
        return path
    if str(path).isascii() or path.parent == path or is_url(path):
        return None
    folder = existing(path.parent)
    if folder is None or not folder.is_dir():
        return None
    return next((entry for entry in folder.iterdir() if normalized(entry.name) == normalized(path.name)), None)
