"""`Tree`: the files of one kind in a folder and all folders below it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from finetune.errors import DataError
from finetune.files.remote import Entry, is_url, scanned

# Folders in which Linux shows its state, as endless files and folders. Those in shared memory are ordinary ones.
_VIRTUAL = re.compile(r"/(proc|sys|dev)(/(?!shm(/|$))|$)")

# Files and folders that file systems, file browsers and archives leave behind, beside hidden ones.
_OF_SYSTEMS = (
    "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx",
    "__pycache__", "thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r",
)  # fmt: skip


@dataclass
class Tree:
    """The files of one kind in a folder and all folders below it, in the same order on every machine.

    Attributes:
        files: Files of the kind.
        links: Those of them that are links.
        others: Files of other kinds.
        repeated: Links to folders that are read elsewhere in the tree, or that hold the tree.
        errors: Errors of folders that cannot be read.
        folders: Real path of each folder that was read.
    """

    files: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    errors: list[OSError] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)

    def add(self, other: Tree) -> None:
        """Add the files and folders of another tree."""
        self.files += other.files
        self.links += other.links
        self.others += other.others
        self.repeated += other.repeated
        self.errors += other.errors
        self.folders |= other.folders


def walk(folder: Path, matches: Callable[[str], bool]) -> Tree:
    """Read a folder and all folders below it. Links are followed, but no folder is read twice.

    Args:
        folder: The folder.
        matches: Function that returns whether a file is of the kind, by its name.

    Raises:
        DataError: If a link leads to a folder of the system, which has no end.

    Example:
        >>> walk(Path("dogs/train/husky"), lambda name: name.endswith(".png")).files[0]
        'dogs/train/husky/0.png'
    """
    tree, above, pending = Tree(), real_parents(folder), [str(folder)]
    while pending:
        base = pending.pop()
        real = base if is_url(base) else os.path.realpath(base)
        if _VIRTUAL.match(real):
            raise DataError(f"'{base}' leads to '{real}', which holds no data but the system's state. Remove the link.")
        if real in above or real in tree.folders:
            tree.repeated.append(base)
            continue
        try:
            pending += reversed(_read(base, matches, tree))
            tree.folders[real] = base
        except OSError as error:
            tree.errors.append(error)
    return tree


def _read(base: str, matches: Callable[[str], bool], tree: Tree) -> list[str]:
    """Add the files in a folder to the tree, and return the folders in it. The listing says which is which."""
    with scanned(base) as entries:
        found = sorted((entry.name, entry) for entry in entries if not is_left_by_a_system(entry.name))
    prefix, folders = "" if base == "." else os.path.join(base, ""), []
    for name, entry in found:
        path = prefix + name
        if _is_folder(entry):
            folders.append(path)
        elif not matches(name):
            tree.others.append(path)
        else:
            tree.files.append(path)
            if entry.is_symlink():
                tree.links.append(path)
    return folders


def _is_folder(entry: Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in circles
        return False


def real_parents(folder: Path) -> set[str]:
    """Return the real paths of the folders that hold a folder."""
    return {str(path) for path in Path(os.path.realpath(folder)).parents}


def is_left_by_a_system(name: str) -> bool:
    """Return whether a file or folder is hidden, or was made by a file system, a file browser or a notebook.

    Example:
        >>> is_left_by_a_system("Thumbs.db"), is_left_by_a_system("dog.jpg")
        (True, False)
    """
    return name.startswith(".") or name.lower() in _OF_SYSTEMS
