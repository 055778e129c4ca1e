"""Activations in files, for runs that outgrow memory and for reuse by later runs.

A store is a folder named by its fingerprint, with these files:

- `header.json`: format version, fingerprint, shapes and dtypes.
- `keys.bin`: the 16-byte key of each sample. Samples are looked up by key, so runs on other subsets of the same data
  share rows, and new samples are appended.
- `0.bin`, `1.bin`, ...: the rows of each stored tensor.
- `sums.bin`: the CRC-32 of each sample's key and rows.
- `whole.bin`: one byte per sample, 1 once its rows are complete.

It stays consistent in all of these cases:

- The process is killed. A sample is marked complete only after its rows have been flushed to disk, so marked rows are
  correct even after a power failure. Rows are marked every few seconds; unmarked ones are lost.
- It is killed while creating a store. The folder is renamed to its final name last.
- It is killed while growing a store. Keys are appended last, after the space for their unmarked rows.
- Two runs share a store. One holds the lock and writes, the other reads marked rows. The system releases the lock
  when its process ends; `refresh` takes it over.
- The disk fills up. Blocks are allocated before the first row is written.
- The header does not match, or a file is truncated. The store is created anew.
- Bytes change, or a file is truncated in use. Rows are compared with their checksums when a run first reads them, and
  read by calls that can fail, because a memory map of a truncated file kills the process. Damaged rows are missing.
- A link is planted. The store's folder and files must not be links; the folder of all stores may be.
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

from finetune.caching.store.row_files import checksums, grow, read_rows, write_at, write_rows
from finetune.caching.store.store import Spec, Store, StoreError
from finetune.devices.free_memory import free_memory
from finetune.digests import KEY_BYTES
from finetune.errors import ArgumentError
from finetune.files.locks import release, take
from finetune.files.regular import check_regular, opened_directly

FORMAT_VERSION = 3
KEY = np.dtype(f"S{KEY_BYTES}")

_HEADER, _KEYS, _SUMS, _MARKS = "header.json", "keys.bin", "sums.bin", "whole.bin"
_LONGEST_HEADER = 1 << 20  # bytes
_KEPT_SHARE = 1 / 8  # of the free memory: a store that fits stays there once read, because small rows are read slowly


class DiskStore(Store):
    """Activations in files. Memory use stays flat; the system caches the pages. The rows of a small store are kept.

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
        kept_bytes: Largest size of a store whose rows stay in memory once they have been read. None for an eighth of
            the free memory.

    Raises:
        ArgumentError: If `folder` is a file.
        StoreError: If the disk is full or cannot be written, its file system has no locks, or a file of the store is
            a link.
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
        kept_bytes: int | None = None,
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
        self._files: list[int] = []  # of the files in `_bytes_per_row`, without the keys
        self._opened = ""  # identity of the store that is open
        self._stored_keys, self._sums = np.zeros(0, KEY), np.zeros(0, np.uint32)  # of each place
        self._checked = torch.zeros(0, dtype=torch.bool)  # places whose rows have matched their checksum
        self._kept = False  # whether these rows are in `_rows`, too
        self._unmarked: list[Tensor] = []
        self._marked_at = time.monotonic()
        self._mark_interval, self._chunk_bytes = mark_interval, chunk_bytes
        self._most_kept = _KEPT_SHARE * free_memory(torch.device("cpu")) if kept_bytes is None else kept_bytes
        self._resources, self._row_files = ExitStack(), ExitStack()
        self._resources.push(self._row_files)
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
        except OSError as error:
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
        return {**rows, _SUMS: 4, _MARKS: 1, _KEYS: KEY.itemsize}

    def _header(self, identity: str) -> dict[str, Any]:
        tensors = [{"shape": list(spec.shape), "dtype": str(spec.dtype)} for spec in self.specs]
        return {"version": FORMAT_VERSION, "fingerprint": self._name, "tensors": tensors, "identity": identity}

    def _identity(self) -> str | None:
        """Return the unique identity of the store on disk, or None if it is missing, damaged or does not match.

        Raises:
            OSError: If a file cannot be read, or is a link.
        """
        if self._path.is_symlink():
            check_regular(self._path, self._path.lstat())
        try:
            header = json.loads(_bytes(self._path / _HEADER, _LONGEST_HEADER))
            identity = str(header["identity"])
            rows = self._size(_KEYS) // KEY.itemsize  # read first, because it grows last
            fits = all(self._size(name) >= rows * size for name, size in self._bytes_per_row().items())
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return identity if header == self._header(identity) and fits else None

    def _size(self, name: str) -> int:
        state = (self._path / name).lstat()
        check_regular(self._path / name, state)
        return state.st_size

    def _try_lock(self) -> None:
        try:
            lock = opened_directly(self._lock_path, os.O_RDWR | os.O_CREAT)
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
            if os.path.lexists(old):
                shutil.rmtree(old)
        try:
            staged.mkdir()
            self._make_room(staged)
            with (staged / _HEADER).open("x", encoding="utf-8") as file:
                json.dump(self._header(uuid.uuid4().hex), file)
            staged.rename(self._path)
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            raise

    def _make_room(self, store: Path) -> None:
        """Append space for the samples that have no place yet."""
        with ExitStack() as opened:
            files = {}
            for name in self._bytes_per_row():
                files[name] = opened_directly(store / name, os.O_RDWR | os.O_CREAT)
                opened.callback(os.close, files[name])
            keys = _items(store / _KEYS, KEY)
            new = self._keys[_places(self._keys, keys) == len(keys)]
            new = new[np.sort(np.unique(new, return_index=True)[1])]
            if not len(new):
                return
            room = {files[name]: size for name, size in self._bytes_per_row().items() if name != _KEYS}
            try:
                for file, size in room.items():
                    grow(file, len(keys) * size, len(new) * size, self._chunk_bytes)
            except OSError:
                for file, size in room.items():  # release the allocated space
                    os.ftruncate(file, len(keys) * size)
                raise
            os.fsync(files[_MARKS])
            os.ftruncate(files[_KEYS], keys.nbytes)  # drop a partial key at the end
            write_at(files[_KEYS], keys.nbytes, new.tobytes())
            os.fsync(files[_KEYS])

    def _open(self) -> None:
        identity = self._identity()
        if identity is None:
            return  # another run is creating it
        with ExitStack() as opened:
            files = self._opened_files(opened)
            keys = _items(self._path / _KEYS, KEY)
            marks = _items(self._path / _MARKS, np.uint8)  # read after the keys, so there is one for each
            sums = _items(self._path / _SUMS, np.uint32)  # read after the marks, so each marked row has its own
            if self._identity() != identity:
                return  # created anew in the meantime, so the marks may belong to other rows
            self._row_files.close()
            self._row_files.push(opened.pop_all())
        if identity != self._opened or len(keys) != len(self._checked):
            self._checked = torch.zeros(len(keys), dtype=torch.bool)
            self._kept = len(keys) * sum(spec.bytes for spec in self.specs) <= self._most_kept
            self._rows = self._allocated(len(keys) if self._kept else 0, "cpu")
        self._opened, self._files, self._stored_keys, self._sums = identity, files, keys, sums[: len(keys)]
        self._filled = torch.from_numpy(np.append(marks[: len(keys)] == 1, False))
        self._place_of = torch.from_numpy(_places(self._keys, keys))
        self.writable = self._lock is not None

    def _opened_files(self, opened: ExitStack) -> list[int]:
        files = []
        for name in self._bytes_per_row():
            if name != _KEYS:
                files.append(opened_directly(self._path / name, os.O_RDONLY if self._lock is None else os.O_RDWR))
                opened.callback(os.close, files[-1])
        return files

    def _gathered(self, places: Tensor) -> list[Tensor]:
        if not self._kept:
            return self._read(places)
        checked = self._checked.index_select(0, places)
        if not checked.all():
            new = places[~checked].unique()
            for kept, rows in zip(self._rows, self._read(new), strict=True):
                kept.index_copy_(0, new, rows)
        return super()._gathered(places)

    def _read(self, places: Tensor) -> list[Tensor]:
        """Read rows from the files, and compare those read for the first time with their checksums.

        Raises:
            StoreError: If rows are damaged. They count as missing from now on.
        """
        rows = self._allocated(len(places), "cpu", pinned=self._pinned)
        damaged = torch.zeros(len(places), dtype=torch.bool)
        for file, read in zip(self._files, rows, strict=False):  # the last two hold the checksums and the marks
            damaged |= ~read_rows(file, places, read)
        new = torch.nonzero(~self._checked[places]).flatten()
        if len(new):
            chosen = rows if len(new) == len(places) else [read[new] for read in rows]
            damaged[new] |= torch.from_numpy(self._sums_of(places[new], chosen) != self._sums[places[new].numpy()])
        if damaged.any():
            self._filled[places[damaged]] = False
            raise StoreError(f"{len(places[damaged].unique())} rows in {self._path} do not match their checksums")
        self._checked[places] = True
        return rows

    def _sums_of(self, places: Tensor, rows: Sequence[Tensor]) -> np.ndarray:
        return checksums(self._stored_keys[places.numpy()].tolist(), rows)

    def _places(self, rows: Tensor) -> Tensor:
        return self._place_of.index_select(0, rows)

    def _write(self, places: Tensor, values: list[Tensor]) -> None:
        values = [value.cpu() for value in values]
        sums = self._sums_of(places, values)
        self._sums[places.numpy()], self._checked[places] = sums, False
        columns = [*values, torch.from_numpy(sums)]
        try:
            for file, new in zip(self._files, columns, strict=False):  # the last file holds the marks
                write_rows(file, places, new)
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
        write_rows(marks, places, torch.ones(len(places), dtype=torch.uint8))
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


def _items(path: Path, dtype: Any) -> np.ndarray:
    """Return the whole items in a file."""
    data, dtype = _bytes(path), np.dtype(dtype)
    return np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype).copy()


def _bytes(path: Path, at_most: int = -1) -> bytes:
    with os.fdopen(opened_directly(path, os.O_RDONLY), "rb") as file:
        return file.read(at_most)
