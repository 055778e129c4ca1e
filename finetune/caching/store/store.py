"""The interface of all stores: one row of activations per input, written once, read by row number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows are kept as integers of the same width, because torch can copy these for every dtype.
STORAGE_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of one stored tensor, per row."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes per row."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class StoreError(Exception):
    """Activations cannot be stored. The message is one line for the user; the run continues without a store."""


class Store:
    """Rows of activations. A row is written once and never changes.

    With V views of each of N samples there are V * N rows, and a view's row is `view * N + sample`.

    Attributes:
        specs: Shape and dtype per row, one for each stored tensor.
        num_rows: Number of rows that the store can hold.
        writable: Whether `put` has an effect.
    """

    def __init__(self, specs: Sequence[Spec], num_rows: int, pinned: bool) -> None:
        self.specs = tuple(specs)
        self.num_rows = num_rows
        self.writable = True
        self._pinned = pinned
        self._rows = self._allocated(0, "cpu")  # [num_rows, *spec.shape] for each spec
        self._filled = torch.zeros(num_rows, dtype=torch.bool)

    @property
    def full(self) -> bool:
        """Whether every row is stored."""
        return self.has(torch.arange(self.num_rows))

    def count(self) -> int:
        """Return the number of stored rows."""
        return int(self._filled.index_select(0, self._places(torch.arange(self.num_rows))).sum())

    def has(self, rows: Tensor) -> bool:
        """Return whether all of `rows`, int64 [B] on the CPU, are stored."""
        return bool(self._filled.index_select(0, self._places(rows)).all())

    def get(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return copies of the stored tensors at `rows`, int64 [B]: `[B, *spec.shape]` for each spec.

        Raises:
            KeyError: If a row is not stored.
            StoreError: If a row is damaged. It counts as not stored from now on.
        """
        if not self.has(rows):
            missing = rows[~self._filled[self._places(rows)]]
            raise KeyError(f"{len(missing)} of {len(rows)} rows are not stored, the first {int(missing[0])}")
        gathered = self._gathered(self._places(rows))
        return tuple(values.view(spec.dtype) for values, spec in zip(gathered, self.specs, strict=True))

    def put(self, rows: Tensor, tensors: Sequence[Tensor]) -> None:
        """Store tensors at `rows`, int64 [B], skipping rows that are stored already.

        Args:
            rows: Row numbers, each once.
            tensors: `[B, *spec.shape]` for each spec, on any device.

        Raises:
            ValueError: If shapes or dtypes differ from `specs`.
            StoreError: If there is no room. Stored rows remain readable, but no more can be added.
        """
        for tensor, spec in zip(tensors, self.specs, strict=True):
            if tensor.shape != (len(rows), *spec.shape) or tensor.dtype != spec.dtype:
                raise ValueError(f"{tuple(tensor.shape)} of {tensor.dtype} for {len(rows)} rows of {spec}")
        places = self._places(rows)
        new = ~self._filled.index_select(0, places)
        if not self.writable or not new.any():
            return
        if not new.all():
            places, tensors = places[new], [tensor[new.to(tensor.device)] for tensor in tensors]
        plain = [tensor.detach().resolve_conj().resolve_neg().contiguous() for tensor in tensors]
        self._write(places, [tensor.view(STORAGE_DTYPES[tensor.dtype.itemsize]) for tensor in plain])
        self._filled[places] = True

    def refresh(self) -> None:
        """Pick up the rows that other runs have stored in the meantime, if the store is shared.

        Raises:
            StoreError: If the store can no longer be used.
        """

    def close(self) -> None:
        """Release the store's resources. The store is empty afterwards."""
        self.writable = False
        self._filled.zero_()
        self._rows = self._allocated(0, "cpu")

    def _places(self, rows: Tensor) -> Tensor:
        """Return the physical positions of `rows`."""
        return rows

    def _write(self, places: Tensor, values: list[Tensor]) -> None:
        raise NotImplementedError

    def _allocated(self, num_rows: int, device: torch.device | str, *, pinned: bool = False) -> list[Tensor]:
        return [
            torch.empty(
                (num_rows, *spec.shape), dtype=STORAGE_DTYPES[spec.dtype.itemsize], device=device, pin_memory=pinned
            )
            for spec in self.specs
        ]

    def _gathered(self, places: Tensor) -> list[Tensor]:
        """Return copies of the rows at `places`, `[B, *spec.shape]` of the storage dtype for each spec."""
        if not self._pinned:
            return [rows.index_select(0, places.to(rows.device)) for rows in self._rows]
        gathered = self._allocated(len(places), "cpu", pinned=True)
        return [torch.index_select(rows, 0, places, out=out) for rows, out in zip(self._rows, gathered, strict=True)]


class StoreSlice(Store):
    """Consecutive rows of a store, numbered from 0, so that training and validation data can share one.

    Args:
        store: The whole store, which the caller closes.
        start: First row of the slice.
        num_rows: Number of rows in the slice.
    """

    def __init__(self, store: Store, start: int, num_rows: int) -> None:
        super().__init__(store.specs, 0, pinned=False)
        self.num_rows = num_rows
        self._store, self._start = store, start

    def has(self, rows: Tensor) -> bool:
        return self._store.has(rows + self._start)

    def get(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self._store.get(rows + self._start)

    def put(self, rows: Tensor, tensors: Sequence[Tensor]) -> None:
        self._store.put(rows + self._start, tensors)

    def refresh(self) -> None:
        self._store.refresh()
