"""Files and folders that the cells of a table name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.data.sources.folders import data_path, is_sample_file
from finetune.errors import ArgumentError
from finetune.files.listing import Located, located
from finetune.files.remote import is_url, scanned
from finetune.naming.paths import existing, exists, local_path
from finetune.naming.unicode import normalized


class ListedFiles:
    """The files and folders in a folder. A path of a file may lack its suffix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stems: dict[Path, dict[str, Path]] = {}

    def find_all(self, cells: Sequence[str]) -> Located:
        """Find the files and folders that cells name. A folder of which they name many is listed once."""
        return located(cells, self._folder_of, self.find)

    def _folder_of(self, head: str) -> str | None:
        try:
            return str(self._place(head))
        except ArgumentError:
            return None

    def _place(self, cell: str) -> Path:
        return data_path(cell) if is_url(cell) else self.folder / local_path(cell)

    def find(self, cell: str) -> Path | None:
        """Return the file that a cell names, or else the folder, or None if there is neither."""
        try:
            path = self._place(cell)
        except ArgumentError:
            return None
        found = existing(path)
        if found is not None and not found.is_dir():  # a pipe or a device is named when it is opened
            return found
        if is_sample_file(cell) or not exists(path.parent) or not path.name:
            return found
        if path.parent not in self._stems:
            with scanned(path.parent) as entries:
                files = sorted(path.parent / entry.name for entry in entries if is_sample_file(entry.name))
            self._stems[path.parent] = {normalized(file.stem): file for file in files}
        return self._stems[path.parent].get(normalized(path.name), found)
