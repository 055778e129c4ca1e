"""The activations of a frozen prefix in memory-mapped files, for a run that outgrows memory or for runs to come.

A store is a folder, named by its fingerprint: a header; a file with the key of each sample, 16 bytes; a file
of rows for each tensor; and a file with a byte for each sample that is 1 once its rows are whole. A sample
is found by its key, so that runs over other parts of the same data share its rows, and samples that are new
are put behind those that are there. What can go wrong, and what holds then:

- The process is killed. A sample is marked only after its rows have reached the disk itself, so that what
  is marked is right, after a loss of power too. Rows are marked every few seconds; later ones are lost.
- It is killed while it makes a store. The folder gets its name once it is complete.
- It is killed while it makes room. The keys come last, once the room is there and unmarked.
- Two runs share a store. One holds the lock and fills it, the other reads what is marked and writes
  nothing. The lock is the system's and ends with its process; `refresh` takes it over.
- The disk fills. All files get their blocks before they are mapped, and are written by calls that can
  fail: a store through its memory map would end the process.
- The header does not fit, or a file is cut short. The store is made anew.

Rows are not checked against the decay of a disk.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.caching.store.memory import INTEGERS, Spec, Store, StoreError
from finetune.caching.store.row_files import grow, write_at, write_rows
from finetune.errors import ArgumentError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FORMAT_VERSION = 2
KEY = np.dtype("S16")

_HEADER, _KEYS, _MARKS = "header.json", "keys.bin", "whole.bin"
_SECONDS_UNMARKED = 5.0
_WRITING = os.O_RDWR | getattr(os, "O_BINARY", 0)


class DiskStore(Store):
    """Activations in memory-mapped files: memory stays flat, the pages are the system's to keep or to drop.

    A store that another run is filling is not `writable`: what is there can be read, and `put` does nothing.

    Args:
        folder: the user's, for all stores; this one stays in `folder/fingerprint`. None for a temporary
            one in the system's folder for these: gone with the process.
        specs: shape and type of what is stored of each sample.
        samples: the keys of the samples, `KEY` [N]; equal ones have one row. Or how many there are, where
            their number alone tells one from another. Room for all of them is taken at once.
        fingerprint: of all that the activations follow from (`fingerprint.py`), in letters and digits.
        pinned: `get` returns page-locked memory, which a CUDA device copies without a wait.

    Raises:
        ArgumentError: `folder` is a file.
        StoreError: the disk is full or cannot be written, or its file system has no locks.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        specs: Sequence[Spec],
        samples: np.ndarray | int,
        fingerprint: str = "temporary",
        *,
        pinned: bool = False,
    ) -> None:
        self._keys = _numbered(samples) if isinstance(samples, int) else samples
        super().__init__(specs, len(self._keys), pinned)
        self._there = torch.zeros(1, dtype=torch.bool)  # the last one stands for samples without a row
        self._row_of = torch.zeros(self.num_samples, dtype=torch.int64)
        if not fingerprint.isalnum():  # it names a folder that is deleted when it is damaged
            raise ValueError(f"the fingerprint {fingerprint!r} is not made of letters and digits")
        self.writable = False
        self._name = fingerprint
        self._temporary = folder is None
        self._lock: int | None = None  # descriptors, as are the files
        self._files: list[int] = []
        self._unmarked: list[Tensor] = []
        self._marked_at = time.monotonic()
        self._resources = ExitStack()
        self._ended = weakref.finalize(self, self._resources.close)  # for a store that nobody closes
        self._folder = _made_folder(folder, self._resources)
        self.refresh()
        if self._temporary and os.name == "posix":
            shutil.rmtree(self._folder)  # what is open lives on, and ends with the process however that ends

    def refresh(self) -> None:
        """Look again at what another run has filled by now; if that has ended, take over.

        Raises:
            StoreError: the disk is full or cannot be written, or its file system has no locks.
        """
        if self._lock is not None or not self._ended.alive:
            return
        try:
            self._try_lock()
            if self._lock is not None:
                if self._identity() is None:
                    self._make()
                self._make_room(self._path)
            self._open()
        except (OSError, RuntimeError) as error:  # torch's for mapping
            self.close()
            raise self._failure(error) from error

    def flush(self) -> None:
        """Mark what was put as there, once it has reached the disk itself. Happens every few seconds anyway.

        Raises:
            StoreError: the disk fails.
        """
        try:
            self._mark()
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Mark what was put and let go of the files; those of a temporary store are deleted."""
        with suppress(OSError):  # it is lost, and computed again
            self._mark()
        super().close()
        if self._lock is not None and sys.platform != "win32":
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # workers forked meanwhile hold it open too
        self._lock, self._files = None, []
        self._ended()

    def delete(self) -> None:
        """Close the store and delete its files, unless another run is filling them."""
        if self._lock is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            with suppress(OSError):
                self._lock_path.unlink()
        self._unmarked = []
        self.close()

    @property
    def _path(self) -> Path:
        return self._folder / self._name

    @property
    def _lock_path(self) -> Path:
        return self._folder / f"{self._name}.lock"

    def _bytes_per_row(self) -> dict[str, int]:
        """Return the files that grow with the samples, the keys' last."""
        rows = {f"{number}.bin": spec.bytes for number, spec in enumerate(self.specs)}
        return {**rows, _MARKS: 1, _KEYS: KEY.itemsize}

    def _header(self, identity: str) -> dict[str, Any]:
        tensors = [{"shape": list(spec.shape), "dtype": str(spec.dtype)} for spec in self.specs]
        return {"version": FORMAT_VERSION, "fingerprint": self._name, "tensors": tensors, "identity": identity}

    def _identity(self) -> str | None:
        """Return what tells the store that is there from one made later; None if there is none that fits."""
        try:
            header = json.loads((self._path / _HEADER).read_text(encoding="utf-8"))
            identity = str(header["identity"])
            rows = (self._path / _KEYS).stat().st_size // KEY.itemsize  # first: the others grow before it does
            sizes = self._bytes_per_row().items()
            fits = all((self._path / name).stat().st_size >= rows * size for name, size in sizes)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return identity if header == self._header(identity) and fits else None

    def _try_lock(self) -> None:
        try:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS) and self._identity() is not None:
                return  # a store that can be read and not written
            raise
        try:
            if sys.platform == "win32":
                msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, (BlockingIOError, PermissionError)):
                return  # another run has it
            raise
        if os.fstat(lock).st_nlink == 0:  # deleted with its store before we had it
            os.close(lock)
            self._try_lock()
            return
        self._lock = lock
        self._resources.callback(os.close, lock)

    def _make(self) -> None:
        """Make a store in place of whatever is there, with room for all samples."""
        staged = self._folder / f"{self._name}.part"
        for old in (staged, self._path):
            if old.exists():
                shutil.rmtree(old)
        try:
            staged.mkdir()
            self._make_room(staged)
            (staged / _HEADER).write_text(json.dumps(self._header(uuid.uuid4().hex)), encoding="utf-8")
            staged.rename(self._path)
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            raise

    def _make_room(self, store: Path) -> None:
        """Give every sample of ours that has no row one, behind those that are there."""
        with ExitStack() as opened:
            files = {}
            for name in self._bytes_per_row():
                files[name] = os.open(store / name, _WRITING | os.O_CREAT, 0o666)
                opened.callback(os.close, files[name])
            keys = np.fromfile(store / _KEYS, KEY)
            new = self._keys[_places(self._keys, keys) == len(keys)]
            new = new[np.sort(np.unique(new, return_index=True)[1])]
            if not len(new):
                return
            room = {files[name]: size for name, size in self._bytes_per_row().items() if name != _KEYS}
            try:
                for file, size in room.items():
                    grow(file, len(keys) * size, len(new) * size)
            except OSError:
                for file, size in room.items():  # what was had of it is given back
                    os.ftruncate(file, len(keys) * size)
                raise
            os.fsync(files[_MARKS])
            os.ftruncate(files[_KEYS], keys.nbytes)  # behind them may be a part of one
            write_at(files[_KEYS], keys.nbytes, new.tobytes())
            os.fsync(files[_KEYS])

    def _open(self) -> None:
        identity = self._identity()
        if identity is None:
            return  # another run is making it
        keys = np.fromfile(self._path / _KEYS, KEY)
        marks = np.fromfile(self._path / _MARKS, np.uint8)  # after the keys, and so one for each
        rows = [self._mapped(number, spec, len(keys)) for number, spec in enumerate(self.specs)]
        if self._identity() != identity:
            return  # made anew meanwhile, so that the marks may not be of these rows
        self._rows = rows
        self._there = torch.from_numpy(np.append(marks[: len(keys)] == 1, False))
        self._row_of = torch.from_numpy(_places(self._keys, keys))
        if self._lock is not None:
            for name in self._bytes_per_row():
                if name != _KEYS:
                    self._files.append(os.open(self._path / name, _WRITING))
                    self._resources.callback(os.close, self._files[-1])
            self.writable = True

    def _mapped(self, number: int, spec: Spec, rows: int) -> Tensor:
        path, shape = self._path / f"{number}.bin", (rows, *spec.shape)
        size, dtype = torch.Size(shape).numel(), INTEGERS[spec.dtype.itemsize]
        if not size:
            return torch.empty(shape, dtype=dtype)
        return torch.from_file(str(path), shared=os.access(path, os.W_OK), size=size, dtype=dtype).view(shape)

    def _places(self, indices: Tensor) -> Tensor:
        return self._row_of.index_select(0, indices)

    def _write(self, places: Tensor, rows: list[Tensor]) -> None:
        try:
            for file, new in zip(self._files, rows, strict=False):  # the last one is that of the marks
                write_rows(file, places, new)
            self._unmarked.append(places)
            last = int(self._there.sum()) + len(places) >= len(self._there) - 1
            if last or time.monotonic() - self._marked_at > _SECONDS_UNMARKED:
                self._mark()
        except OSError as error:
            self.writable = False
            raise self._failure(error) from error

    def _mark(self) -> None:
        if not self._unmarked:
            return
        indices, self._unmarked = torch.cat(self._unmarked), []
        self._marked_at = time.monotonic()
        if self._temporary:
            return  # nobody opens it again
        *files, marks = self._files
        for file in files:
            os.fsync(file)
        write_rows(marks, indices, torch.ones(len(indices), dtype=torch.uint8))
        os.fsync(marks)

    def _failure(self, error: Exception) -> StoreError:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            wanted = self.num_samples * sum(self._bytes_per_row().values())
            return StoreError(f"the disk of {self._folder} has no room for {wanted / 1e9:.2g} GB")
        return StoreError(f"{self._folder} cannot be used: {error}")


def _made_folder(folder: str | os.PathLike[str] | None, resources: ExitStack) -> Path:
    try:
        if folder is None:
            made = tempfile.mkdtemp(prefix="finetune-")
            resources.callback(shutil.rmtree, made, ignore_errors=True)
            return Path(made)
        Path(folder).mkdir(parents=True, exist_ok=True)
        return Path(folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArgumentError(f"{folder} is not a folder. Expected the path of one, there or to be made.") from error
    except OSError as error:
        raise StoreError(f"{folder} cannot be used: {error}") from error


def _numbered(samples: int) -> np.ndarray:
    """Return keys that say the numbers of samples."""
    return np.arange(samples, dtype=">u8").view("S8").astype(KEY)


def _places(wanted: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return int64 [N], where each wanted key is among `keys`, and `len(keys)` for those that are not there."""
    order = np.argsort(keys, kind="stable")
    found = np.searchsorted(keys, wanted, sorter=order)
    places = np.append(order, len(keys))[found]
    same = np.append(keys, KEY.type())[places] == wanted
    return np.where(same & (places < len(keys)), places, len(keys)).astype(np.int64)
