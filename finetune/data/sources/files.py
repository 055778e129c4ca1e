"""Base class of file sources: one path per sample, suffixes that identify the kind, and a reader."""

from __future__ import annotations

import filecmp
import io
import logging
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from finetune.data.groups import firsts, joined
from finetune.data.sources.base import Indices, Source, evenly_spread
from finetune.data.sources.labels import Classes
from finetune.display.left_out import left_out
from finetune.display.progress.waits import announced
from finetune.errors import DataError
from finetune.files.listing import real_paths
from finetune.files.paths import Paths
from finetune.files.remote import is_url, size_and_time
from finetune.naming.unicode import normalized

if TYPE_CHECKING:
    from finetune.data.audit import Audit

logger = logging.getLogger("finetune")

_GONE = 0
_AT_ONCE = 32  # files that a thread decodes in a row
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
        distinct: Whether every sample is known to be another file.
        way_out: Advice to add to the error of a damaged file that is read after the check.
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
        paths: Sequence[str | os.PathLike[str]],
        targets: Tensor | None = None,
        classes: Classes | None = None,
        folder: Path | None = None,
    ) -> None:
        self.paths = paths if isinstance(paths, Paths) else Paths(paths)
        self.targets = targets
        self.classes = classes
        self.folder = folder
        self.rows: Tensor | None = None
        self.distinct = False
        self.way_out = ""

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
        try:
            item = self.read(self.paths[index])
        except DataError as error:
            raise DataError(f"{error}{self.way_out}") from error
        return item if self.targets is None else (item, self.targets[index])

    def name(self, index: int) -> str:
        path: str = self.paths[index]
        return path

    def groups(self) -> Tensor | None:
        files = self._repeated()
        if files is None or self.rows is None:
            return self.rows if files is None else files
        return joined(files, self.rows)

    def shared_with(self, other: Source) -> str | None:
        """Return the files that `other` has too, or copies of them under the same name. Up to 256 contents are read."""
        if not isinstance(other, FileSource):
            return None
        mine, theirs = list(real_paths(self.paths)), {*real_paths(other.paths)}
        same = [index for index, path in enumerate(mine) if path in theirs]
        named: dict[str, list[str]] = {}
        for path in theirs:
            named.setdefault(os.path.basename(path), []).append(path)
        rest = np.setdiff1d(np.arange(len(mine)), same)
        read = rest[evenly_spread(len(rest), _MAX_COMPARED)].tolist()
        same += [k for k in read if any(_same_content(mine[k], p) for p in named.get(os.path.basename(mine[k]), ()))]
        compared = len(mine) - len(rest) + len(read)
        return f"{len(same)} of {compared} {self.noun}s, such as '{self.paths[same[0]]}'" if same else None

    def subset(self, indices: Indices) -> FileSource:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        targets = None if self.targets is None else self.targets[chosen]
        part = type(self)(self.paths[chosen.numpy()], targets, self.classes, self.folder)
        part.rows = None if self.rows is None else self.rows[chosen]
        part.distinct, part.way_out = self.distinct, self.way_out
        return part

    def check(self, audit: Audit) -> FileSource:
        """Decode every file once, or `audit.max_files` of more than `audit.all_files`, spread evenly.

        To leave out damaged files, every one is decoded.

        Returns:
            The source, without the damaged files if `audit.skip_corrupt`.

        Raises:
            DataError: If a file is damaged and not skipped, or every file is damaged.
        """
        self._say_contradictions(audit.role)
        if audit.skip_corrupt or len(self) <= audit.all_files:
            return self._decoded(audit)
        self.subset(evenly_spread(len(self), audit.max_files))._decoded(audit)
        self.way_out = _way_out(audit)
        logger.info(
            "Checked %s of the %s %ss of the %s data, spread evenly. A damaged one among the others is named when it "
            "is read.", f"{audit.max_files:,}", f"{len(self):,}", self.noun, audit.role,
        )  # fmt: skip
        return self

    def _decoded(self, audit: Audit) -> FileSource:
        """Decode every file, in threads, because Pillow decodes without holding the interpreter's lock."""
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            parts = (self.paths[start : start + _AT_ONCE] for start in range(0, len(self), _AT_ONCE))
            checked = pool.map(lambda part: [self._verified(path, audit) for path in part], parts)
            what = f"Checking the {self.noun}s of the {audit.role} data"
            found = list(announced(chain.from_iterable(checked), what, len(self)))
        finally:
            pool.shutdown(cancel_futures=True)
        logger.debug("Decoded each of %d %ss of the %s data once.", len(found), self.noun, audit.role)
        damaged = {index: result for index, result in enumerate(found) if isinstance(result, DataError)}
        left = self if not damaged else self._without(damaged, audit)
        left.remark([result for result in found if not isinstance(result, DataError)], audit.role)
        return left

    def _without(self, damaged: Mapping[int, DataError], audit: Audit) -> FileSource:
        """Return the source without damaged files, given the error of each, or raise that of the first."""
        first = next(iter(damaged))
        shown = ", ".join(f"'{self.paths[i]}'" for i in [*damaged][:5]) + (", ..." if len(damaged) > 5 else "")
        which = f"{len(damaged)} of the {len(self)} {self.noun}s of the {audit.role} data"
        summary = f"{which} cannot be {self.problem}: {shown}."
        if not audit.skip_corrupt:
            raise DataError(f"{summary} The first: {damaged[first]}{_way_out(audit)}")
        left_out(f"{which} (damaged)", f"{summary} They are left out.")
        if len(damaged) == len(self):
            raise DataError(f"{summary} None is left.")
        return self.subset([index for index in range(len(self)) if index not in damaged])

    def describe(self) -> Iterator[Any]:
        for path in self.paths:
            yield [path if is_url(path) else os.path.abspath(path), *size_and_time(path)]

    def identify(self) -> Iterator[Any]:
        return ([normalized(os.path.basename(path)), size_and_time(path)[0]] for path in self.paths)

    def version(self, *, values: bool) -> Any:
        return tuple(map(_state, self.paths)) if values else None

    def watch(self) -> Callable[[int], bool] | None:
        """Return a function that checks whether the size and modification times of a file are as when first asked.

        A deleted file counts as unchanged, because its earlier content is still valid. Forked processes ask as one.
        """
        paths = self.paths
        states = np.frombuffer(mmap.mmap(-1, 8 * max(1, len(paths))), np.int64)

        def unchanged(index: int) -> bool:
            state = _state(paths[index])
            if states[index] == _GONE:
                states[index] = state
            return state in (_GONE, states[index])

        return unchanged

    def _repeated(self) -> Tensor | None:
        """Return int64 [N], equal for the samples of one file, or None if every sample is another file."""
        self.distinct = self.distinct or Paths(real_paths(self.paths)).distinct
        if self.distinct:
            return None
        number: dict[str, int] = {}
        return torch.tensor([number.setdefault(path, len(number)) for path in real_paths(self.paths)])

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


def _way_out(audit: Audit) -> str:
    """Return the advice to add to the error of damaged files."""
    fit = audit.role in ("training", "validation")
    return " To leave them out, pass skip_corrupt=True to fit." if fit else ""


def _state(path: str) -> int:
    """Return a number that differs after a file has changed."""
    try:
        state = os.stat(path)
    except OSError:  # or a remote file, which is not asked about again
        return _GONE
    return hash((state.st_size, state.st_mtime_ns, state.st_ctime_ns))


def _same_content(one: str, other: str) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:  # which the audit reports
        return False
