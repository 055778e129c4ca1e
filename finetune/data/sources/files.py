"""Base class of file sources: one path per sample, suffixes that identify the kind, and a reader."""

from __future__ import annotations

import filecmp
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from finetune.data.groups import firsts, joined
from finetune.data.sources.base import Indices, Source
from finetune.data.sources.labels import Classes
from finetune.display.left_out import left_out
from finetune.display.progress.waits import announced
from finetune.errors import DataError
from finetune.naming.paths import real_paths
from finetune.naming.unicode import normalized

if TYPE_CHECKING:
    from finetune.data.audit import Audit

logger = logging.getLogger("finetune")

_GONE = 0
_MAX_COMPARED = 256  # files whose contents are compared with those of other data


class FileSource(Source):
    """Files of one kind, one sample each, with or without targets.

    Args:
        paths: Path of each file.
        targets: [N, ...] or None.
        classes: Class names by index, or None.
        folder: Folder that the files are in, or None.

    Attributes:
        rows: int64 [N], the row of a table that each file belongs to, if a row names several; else None.
        noun: Word for one file in a message.
        suffixes: Suffixes of the kind, in lower case.
        problem: Word for a file that cannot be used, after "cannot be".
    """

    noun: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    problem: ClassVar[str] = "used"
    splits = True
    stochastic = False

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Tensor | None = None,
        classes: Classes | None = None,
        folder: Path | None = None,
    ) -> None:
        self.paths = list(paths)
        self.targets = targets
        self.classes = classes
        self.folder = folder
        self.rows: Tensor | None = None

    @classmethod
    def matches(cls, path: str | os.PathLike[str]) -> bool:
        """Return whether `path` has a suffix of this kind, in upper or lower case, and is not hidden."""
        name = os.path.basename(os.fspath(path))
        return name.lower().endswith(cls.suffixes) and not name.startswith(".")

    @staticmethod
    def read(path: str | os.PathLike[str] | IO[bytes]) -> Any:
        """Return the item in a file, which may be open. Raise DataError if the file is damaged."""
        raise NotImplementedError

    @staticmethod
    def verify(path: str | os.PathLike[str] | IO[bytes]) -> Any:
        """Read a file to the end, and return the item or facts on it. Raise DataError if the file is damaged."""
        raise NotImplementedError

    def remark(self, facts: Sequence[Any], role: str) -> None:
        """Log assumptions about the readable files, such as a range of values.

        Args:
            facts: Results of `verify`, one per readable file.
            role: Name of the data in messages.
        """

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        item = self.read(self.paths[index])
        return item if self.targets is None else (item, self.targets[index])

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def groups(self) -> Tensor | None:
        files = self._repeated()
        if files is None or self.rows is None:
            return self.rows if files is None else files
        return joined(files, self.rows)

    def shared_with(self, other: Source) -> str | None:
        """Return the files that `other` has too, or copies of them under the same name. Up to 256 contents are read."""
        if not isinstance(other, FileSource):
            return None
        mine, theirs = real_paths(self.paths), {*real_paths(other.paths)}
        same = [index for index, path in enumerate(mine) if path in theirs]
        named: dict[str, list[str]] = {}
        for path in theirs:
            named.setdefault(os.path.basename(path), []).append(path)
        rest = np.setdiff1d(np.arange(len(mine)), same)
        read = rest[np.linspace(0, len(rest) - 1, min(len(rest), _MAX_COMPARED)).round().astype(int)].tolist()
        same += [k for k in read if any(_same_content(mine[k], p) for p in named.get(os.path.basename(mine[k]), ()))]
        compared = len(mine) - len(rest) + len(read)
        return f"{len(same)} of {compared} {self.noun}s, such as '{self.paths[same[0]]}'" if same else None

    def subset(self, indices: Indices) -> FileSource:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        targets = None if self.targets is None else self.targets[chosen]
        part = type(self)([self.paths[i] for i in chosen.tolist()], targets, self.classes, self.folder)
        part.rows = None if self.rows is None else self.rows[chosen]
        return part

    def check(self, audit: Audit) -> FileSource:
        """Decode every file once, in threads, because Pillow decodes without holding the interpreter's lock.

        Returns:
            The source, without the damaged files if `audit.skip_corrupt`.

        Raises:
            DataError: If a file is damaged and not skipped, or every file is damaged.
        """
        self._say_contradictions(audit.role)
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            checked = pool.map(lambda path: self._verified(path, audit), self.paths)
            found = list(announced(checked, f"Checking the {self.noun}s of the {audit.role} data", len(self.paths)))
        finally:
            pool.shutdown(cancel_futures=True)
        errors = [result if isinstance(result, DataError) else None for result in found]
        self.remark([result for result in found if not isinstance(result, DataError)], audit.role)
        logger.debug("Decoded each of the %d %ss of the %s data once.", len(errors), self.noun, audit.role)
        damaged = [index for index, error in enumerate(errors) if error is not None]
        if not damaged:
            return self
        shown = ", ".join(f"'{self.paths[i]}'" for i in damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        which = f"{len(damaged)} of the {len(errors)} {self.noun}s of the {audit.role} data"
        summary = f"{which} cannot be {self.problem}: {shown}."
        if not audit.skip_corrupt:
            fit = audit.role in ("training", "validation")
            way_out = " To leave them out, pass skip_corrupt=True to fit." if fit else ""
            raise DataError(f"{summary} The first: {errors[damaged[0]]}{way_out}")
        left_out(f"{which} (damaged)", f"{summary} They are left out.")
        if len(damaged) == len(errors):
            raise DataError(f"{summary} None is left.")
        return self.subset([index for index, error in enumerate(errors) if error is None])

    def describe(self) -> Iterator[Any]:
        for path in self.paths:
            state = path.stat()
            yield [os.path.abspath(path), state.st_size, state.st_mtime_ns]

    def identify(self) -> Iterator[Any]:
        return ([normalized(path.name), path.stat().st_size] for path in self.paths)

    def version(self, *, values: bool) -> Any:
        return tuple(map(_state, self.paths)) if values else None

    def watch(self) -> Callable[[int], bool] | None:
        """Return a function that checks whether the size and modification times of a file are unchanged since now.

        A deleted file counts as unchanged, because its earlier content is still valid.
        """
        paths = self.paths
        states = np.array([_state(path) for path in paths], np.int64)
        return lambda index: _state(paths[index]) in (_GONE, states[index])

    def _repeated(self) -> Tensor | None:
        """Return int64 [N], equal for the samples of one file, or None if every sample is another file."""
        number: dict[str, int] = {}
        numbers = [number.setdefault(path, len(number)) for path in real_paths(self.paths)]
        return None if len(number) == len(self.paths) else torch.tensor(numbers)

    def _say_contradictions(self, role: str) -> None:
        """Log how many files have several targets, which is right if several people labeled them."""
        files, targets = self._repeated(), self.targets
        if files is None or targets is None:
            return
        first = firsts(files)
        differ = (targets != targets[first]).reshape(len(files), -1).any(1)
        if differ.any():
            row = int(differ.nonzero()[0])
            logger.warning(
                "%d of the %d %ss of the %s data are listed more than once with different labels, such as '%s': %s "
                "and %s.", len(files[differ].unique()), len(files.unique()), self.noun, role, self.paths[row],
                self._label(int(first[row])), self._label(row),
            )  # fmt: skip

    def _label(self, index: int) -> Any:
        assert self.targets is not None
        label, classes = self.targets[index].tolist(), self.classes or ()
        return classes[label] if isinstance(label, int) and 0 <= label < len(classes) else label

    def _verified(self, path: Path, audit: Audit) -> Any:
        """Return the result of `verify`, or the error of a file that cannot be used."""
        try:
            item = self.verify(path)
            if audit.preprocessing is not None:
                audit.preprocessing.check(item)
        except DataError as error:
            return error
        return item


class EncodedFiles(Sequence[Any]):
    """The contents of files in memory, each read when it is asked for.

    Args:
        contents: Content of each file.
        read: Function that reads an open file.
        name: Function that names sample i in an error message.
    """

    def __init__(self, contents: Sequence[bytes], read: Callable[[IO[bytes]], Any], name: Callable[[int], str]) -> None:
        self.contents = contents
        self._read = read
        self._name = name

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: Any) -> Any:
        file = io.BytesIO(self.contents[index])
        file.name = self._name(index)  # for the error of a file that cannot be decoded
        return self._read(file)


def _state(path: Path) -> int:
    """Return a number that differs after a file has changed."""
    try:
        state = path.stat()
    except OSError:
        return _GONE
    return hash((state.st_size, state.st_mtime_ns, state.st_ctime_ns))


def _same_content(one: str, other: str) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:  # which the audit reports
        return False
