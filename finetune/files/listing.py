"""`located`: the files and folders that many paths name, by listing folders instead of asking for each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from finetune.files.paths import Paths
from finetune.files.remote import scanned

_MIN_NAMED = 8  # files of a folder, below which asking for each is faster
_MAX_LISTED = 16  # entries to list per file that is named, at most


@dataclass
class Located:
    """Files and folders that paths name.

    Attributes:
        paths: Path of each, empty where there is none.
        missing: Positions of the paths that name nothing.
        folders: Positions of the paths that name folders.
        distinct: Whether every path is known to be another file.
    """

    paths: Paths
    missing: list[int] = field(default_factory=list)
    folders: list[int] = field(default_factory=list)
    distinct: bool = False


def located(
    paths: Sequence[str], folder_of: Callable[[str], str | None], find: Callable[[str], Path | None]
) -> Located:
    """Find the files and folders that paths name.

    Args:
        paths: Paths, with `/` between folders.
        folder_of: Function from the part of a path up to its last `/` to the folder to list, or to None.
        find: Function from a path that is not found in a listing to its file or folder, or to None.

    Example:
        >>> found = located(["0.png", "9.png", ""], lambda head: None, lambda p: Path("dogs/train/husky", p))
        >>> found.paths[0], found.folders
        ('dogs/train/husky/0.png', [2])
    """
    listing, result = Listing(paths, folder_of), Located(Paths())
    asked = []

    def ask(position: int) -> str:
        found = find(paths[position])
        asked.append(position)
        result.missing.extend([position] * (found is None))
        result.folders.extend([position] * (found is not None and found.is_dir()))
        return str(found or "")

    result.paths = Paths(listing.find(paths, ask))
    result.distinct = not asked and listing.distinct and result.paths.distinct
    return result


def real_paths(paths: Sequence[str]) -> Iterator[str]:
    """Yield the files that paths lead to through links of files and folders. Each folder is looked up once.

    Example:
        >>> os.path.relpath(next(real_paths(["dogs/train/husky/../husky/0.png"])))
        'dogs/train/husky/0.png'
    """
    folders: dict[str, str] = {}

    def ask(position: int) -> str:
        folder, name = os.path.split(paths[position])
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        path = os.path.join(folders[folder], name)
        return os.path.realpath(path) if os.path.islink(path) else path

    return Listing(paths, os.path.realpath).find(paths, ask)


class Listing:
    """The plain files among many paths. A folder is listed once, and only if many of its files are among them.

    Args:
        paths: The paths, with `/` between folders.
        folder_of: Function from the part of a path up to its last `/` to the folder to look in, or to None.

    Example:
        >>> paths = ["husky/0.png"] * 8 + ["husky/9.png"]
        >>> [*Listing(paths, "dogs/train/{}".format).find(paths, "number {}".format)][7:]
        ['dogs/train/husky/0.png', 'number 8']
    """

    def __init__(self, paths: Iterable[str], folder_of: Callable[[str], str | None]) -> None:
        heads = Counter(path[: path.rfind("/") + 1] for path in paths)
        folders = {head: folder_of(head) for head, named in heads.items() if named >= _MIN_NAMED}
        listed = {head: folder for head, folder in folders.items() if folder is not None}
        self._prefixes = {head: "" if folder == "." else os.path.join(folder, "") for head, folder in listed.items()}
        self._files = {
            head + name for head, folder in listed.items() for name in _plain_files(folder, _MAX_LISTED * heads[head])
        }

    @property
    def distinct(self) -> bool:
        """Whether the listed folders are different ones, so that different paths in them are different files."""
        return len({*map(os.path.realpath, self._prefixes.values())}) == len(self._prefixes)

    def find(self, paths: Iterable[str], otherwise: Callable[[int], str]) -> Iterator[str]:
        """Yield the path of each plain file in its folder.

        Args:
            paths: The paths.
            otherwise: Function that returns the result for any other path, by its position.
        """
        base = next((prefix.removesuffix(head) for head, prefix in self._prefixes.items()), "")
        if all(base + head == prefix for head, prefix in self._prefixes.items()):  # quicker, and usual
            yield from (base + path if path in self._files else otherwise(k) for k, path in enumerate(paths))
            return
        for position, path in enumerate(paths):
            cut = path.rfind("/") + 1
            yield self._prefixes[path[:cut]] + path[cut:] if path in self._files else otherwise(position)


def _plain_files(folder: str, limit: int) -> set[str]:
    """Return the names of the files in a folder that are no links, among its first `limit` entries."""
    try:
        with scanned(folder) as entries:  # which knows links and folders, so nothing is asked
            return {entry.name for entry in islice(entries, limit) if entry.is_file(follow_symlinks=False)}
    except (OSError, ValueError):  # whoever reads the file says why it cannot be read
        return set()
