"""Activations in memory-mapped files, for runs that outgrow memory and for reuse by later runs.

A store is a folder named by its fingerprint, with these files:

- `header.json`: format version, fingerprint, shapes and dtypes.
- `keys.bin`: the 16-byte key of each sample. Samples are looked up by key, so runs on other subsets of the same data
  share rows, and new samples are appended.
- `0.bin`, `1.bin`, ...: the rows of each stored tensor.
- `whole.bin`: one byte per sample, 1 once its rows are complete.

It stays consistent in all of these cases:

- The process is killed. A sample is marked complete only after its rows have been flushed to disk, so marked rows are
  correct even after a power failure. Rows are marked every few seconds; unmarked ones are lost.
- It is killed while creating a store. The folder is renamed to its final name last.
- It is killed while growing a store. Keys are appended last, after the space for their unmarked rows.
- Two runs share a store. One holds the lock and writes, the other reads marked rows. The system releases the lock
  when its process ends; `refresh` takes it over.
- The disk fills up. Blocks are allocated before mapping and written by calls that can fail, because a failed write
  through a memory map would kill the process.
- The header does not match, or a file is truncated. The store is created anew.

Rows carry no checksums: bit rot goes undetected.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
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

from finetune.caching.store.store import STORAGE_DTYPES, Spec, Store, StoreError
from finetune.digests import KEY_BYTES
from finetune.errors import ArgumentError
from finetune.files.locks import release, take

FORMAT_VERSION = 2
KEY = np.dtype(f"S{KEY_BYTES}")

_HEADER, _KEYS, _MARKS = "header.json", "keys.bin", "whole.bin"
_WRITING = os.O_RDWR | getattr(os, "O_BINARY", 0)


class DiskStore(Store):
    """Activations in memory-mapped files. Memory use stays flat; the system caches the pages.

    While another run fills the same store, it is not `writable`: marked rows can be read, and `put` has no effect.

    Args:
        folder: Folder for all of the user's stores. This one is kept in `folder/fingerprint`. None for a temporary
            store, which is deleted when the process ends.
        specs: Shape and dtype per row, one for each stored tensor.
        samples: Keys of the samples, `KEY` [N], where equal keys share a row; or the number of samples, if their
            order identifies them. Space for all of them is allocated at once.
        fingerprint: Fingerprint of the computation (`keys.fingerprint`), letters and digits.
        pinned: Whether `get` returns page-locked memory, so that a CUDA device copies it asynchronously.
        mark_interval: Seconds between flushes to disk, after which rows are marked complete.
        chunk_bytes: Bytes of zeros to write at a time on file systems that cannot allocate blocks.

    Raises:
        ArgumentError: If `folder` is a file.
        StoreError: If the disk is full or cannot be written, or its file system has no locks.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        specs: Sequence[Spec],
        samples: np.ndarray | int,
        fingerprint: str = "temporary",
        *,
        pinned: bool = False,
        mark_interval: float = 5.0,
        chunk_bytes: int = 1 << 24,
    ) -> None:
        self._keys = _numbered(samples) if isinstance(samples, int) else samples
        super().__init__(specs, len(self._keys), pinned)
        self._filled = torch.zeros(1, dtype=torch.bool)  # the last entry stands for samples without a place
        self._place_of = torch.zeros(self.num_rows, dtype=torch.int64)
        if not fingerprint.isalnum():  # it names a folder that is deleted if damaged
            raise ValueError(f"the fingerprint {fingerprint!r} is not made of letters and digits")
        self.writable = False
        self._name = fingerprint
        self._temporary = folder is None
        self._lock: int | None = None  # a file descriptor, as are those in `_files`
        self._files: list[int] = []
        self._unmarked: list[Tensor] = []
        self._marked_at = time.monotonic()
        self._mark_interval, self._chunk_bytes = mark_interval, chunk_bytes
        self._resources = ExitStack()
        self._finalizer = weakref.finalize(self, self._resources.close)  # for a store that is never closed
        self._folder = _made_folder(folder, self._resources)
        self.refresh()
        if self._temporary and os.name == "posix":
            shutil.rmtree(self._folder)  # open files live on until the process ends, even if it is killed

    def refresh(self) -> None:
        """Pick up the rows that another run has marked. If that run has ended, take over its lock.

        Raises:
            StoreError: If the disk is full or cannot be written, or its file system has no locks.
        """
        if self._lock is not None or not self._finalizer.alive:
            return
        try:
            self._try_lock()
            if self._lock is not None:
                if self._identity() is None:
                    self._make()
                self._make_room(self._path)
            self._open()
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if mapping fails
            self.close()
            raise self._failure(error) from error

    def flush(self) -> None:
        """Flush rows to disk and mark them complete. This also happens every `mark_interval` seconds.

        Raises:
            StoreError: If the disk fails.
        """
        try:
            self._mark()
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Mark rows complete and close the files. A temporary store is deleted."""
        with suppress(OSError):  # unmarked rows are lost and recomputed
            self._mark()
        super().close()
        if self._lock is not None:
            release(self._lock)  # forked loader workers hold the descriptor open too
        self._lock, self._files = None, []
        self._finalizer()

    def delete(self) -> None:
        """Close the store and delete its files, unless another run holds the lock."""
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
        """Return the row size of each file that grows with the samples, the keys last."""
        rows = {f"{number}.bin": spec.bytes for number, spec in enumerate(self.specs)}
        return {**rows, _MARKS: 1, _KEYS: KEY.itemsize}

    def _header(self, identity: str) -> dict[str, Any]:
        tensors = [{"shape": list(spec.shape), "dtype": str(spec.dtype)} for spec in self.specs]
        return {"version": FORMAT_VERSION, "fingerprint": self._name, "tensors": tensors, "identity": identity}

    def _identity(self) -> str | None:
        """Return the unique identity of the store on disk, or None if it is missing, damaged or does not match."""
        try:
            header = json.loads((self._path / _HEADER).read_text(encoding="utf-8"))
            identity = str(header["identity"])
            rows = (self._path / _KEYS).stat().st_size // KEY.itemsize  # read first, because it grows last
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
                return  # a read-only store
            raise
        try:
            take(lock)
        except OSError as error:
            os.close(lock)
            if isinstance(error, (BlockingIOError, PermissionError)):
                return  # another run holds it
            raise
        if os.fstat(lock).st_nlink == 0:  # deleted along with its store before we locked it
            os.close(lock)
            self._try_lock()
            return
        self._lock = lock
        self._resources.callback(os.close, lock)

    def _make(self) -> None:
        """Create the store with space for all samples, replacing a damaged one."""
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
        """Append space for the samples that have no place yet."""
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
                    _grow(file, len(keys) * size, len(new) * size, self._chunk_bytes)
            except OSError:
                for file, size in room.items():  # release the allocated space
                    os.ftruncate(file, len(keys) * size)
                raise
            os.fsync(files[_MARKS])
            os.ftruncate(files[_KEYS], keys.nbytes)  # drop a partial key at the end
            _write_at(files[_KEYS], keys.nbytes, new.tobytes())
            os.fsync(files[_KEYS])

    def _open(self) -> None:
        identity = self._identity()
        if identity is None:
            return  # another run is creating it
        keys = np.fromfile(self._path / _KEYS, KEY)
        marks = np.fromfile(self._path / _MARKS, np.uint8)  # read after the keys, so there is one for each
        rows = [self._mapped(number, spec, len(keys)) for number, spec in enumerate(self.specs)]
        if self._identity() != identity:
            return  # created anew in the meantime, so the marks may belong to other rows
        self._rows = rows
        self._filled = torch.from_numpy(np.append(marks[: len(keys)] == 1, False))
        self._place_of = torch.from_numpy(_places(self._keys, keys))
        if self._lock is not None:
            for name in self._bytes_per_row():
                if name != _KEYS:
                    self._files.append(os.open(self._path / name, _WRITING))
                    self._resources.callback(os.close, self._files[-1])
            self.writable = True

    def _mapped(self, number: int, spec: Spec, rows: int) -> Tensor:
        path, shape = self._path / f"{number}.bin", (rows, *spec.shape)
        size, dtype = torch.Size(shape).numel(), STORAGE_DTYPES[spec.dtype.itemsize]
        if not size:
            return torch.empty(shape, dtype=dtype)
        return torch.from_file(str(path), shared=os.access(path, os.W_OK), size=size, dtype=dtype).view(shape)

    def _places(self, rows: Tensor) -> Tensor:
        return self._place_of.index_select(0, rows)

    def _write(self, places: Tensor, values: list[Tensor]) -> None:
        try:
            for file, new in zip(self._files, values, strict=False):  # the last file holds the marks
                _write_rows(file, places, new)
            self._unmarked.append(places)
            last = int(self._filled.sum()) + len(places) >= len(self._filled) - 1
            if last or time.monotonic() - self._marked_at > self._mark_interval:
                self._mark()
        except OSError as error:
            self.writable = False
            raise self._failure(error) from error

    def _mark(self) -> None:
        if not self._unmarked:
            return
        places, self._unmarked = torch.cat(self._unmarked), []
        self._marked_at = time.monotonic()
        if self._temporary:
            return  # no other run reads it
        *files, marks = self._files
        for file in files:
            os.fsync(file)
        _write_rows(marks, places, torch.ones(len(places), dtype=torch.uint8))
        os.fsync(marks)

    def _failure(self, error: Exception) -> StoreError:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            wanted = self.num_rows * sum(self._bytes_per_row().values())
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
        raise ArgumentError(f"{folder} is not a folder. Expected the path of an existing or new folder.") from error
    except OSError as error:
        raise StoreError(f"{folder} cannot be used: {error}") from error


def _numbered(samples: int) -> np.ndarray:
    """Return keys that encode the numbers of the samples."""
    return np.arange(samples, dtype=">u8").view("S8").astype(KEY)


def _places(wanted: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the position of each wanted key in `keys`, int64 [N], or `len(keys)` for missing ones."""
    order = np.argsort(keys, kind="stable")
    found = np.searchsorted(keys, wanted, sorter=order)
    places = np.append(order, len(keys))[found]
    same = np.append(keys, KEY.type())[places] == wanted
    return np.where(same & (places < len(keys)), places, len(keys)).astype(np.int64)


def _grow(file: int, start: int, size: int, chunk_bytes: int) -> None:
    """Extend a file by `size` zero bytes from `start` on and allocate their blocks, so that a full disk fails here."""
    os.ftruncate(file, start)  # drop bytes that could be mistaken for complete rows
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, start, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    zeros = bytes(min(size, chunk_bytes))
    for done in range(0, size, chunk_bytes):
        _write_at(file, start + done, zeros[: size - done])


def _write_at(file: int, start: int, data: Any) -> None:
    """Write all bytes of `data` from `start` on."""
    os.lseek(file, start, os.SEEK_SET)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _write_rows(file: int, places: Tensor, rows: Tensor) -> None:
    """Write `rows` [N, ...] to the file, row i at place `places[i]`."""
    if not rows.numel():
        return
    data = rows.cpu().reshape(len(rows), -1).view(torch.uint8).numpy()
    for place, row in zip(places.tolist(), data, strict=True):
        _write_at(file, place * len(row), row)
