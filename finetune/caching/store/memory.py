"""The activations of a frozen prefix, one row for each sample: in memory here, on disk in `disk.py`.

A row is kept as integers as wide as its type, because torch moves these whatever they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


@dataclass(frozen=True)
class Spec:
    """What is stored of one tensor for each sample: its shape and its type."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes per sample."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class StoreError(Exception):
    """Activations cannot be stored; the message says why, in one line fit for a user, who goes on without."""


class Store:
    """What is stored of `num_samples` samples; with K views of each, of K times as many.

    The key of a sample is a number below `num_samples`; that of a view of it is usually
    view * samples + sample. Every row is written once: a sample that is there stays as it is.

    Attributes:
        specs: shape and type of what is stored of each sample, one for each tensor.
        num_samples: how many samples there is room for.
        writable: whether `put` does anything.
    """

    def __init__(self, specs: Sequence[Spec], num_samples: int, pinned: bool) -> None:
        self.specs = tuple(specs)
        self.num_samples = num_samples
        self.writable = True
        self._pinned = pinned
        self._rows = self._allocated(0, "cpu")  # [num_samples, *spec.shape] for each of `specs`
        self._there = torch.zeros(num_samples, dtype=torch.bool)

    @property
    def whole(self) -> bool:
        """Whether all samples are there."""
        return self.has(torch.arange(self.num_samples))

    def count(self) -> int:
        """Return how many samples are there."""
        return int(self._there.index_select(0, self._places(torch.arange(self.num_samples))).sum())

    def has(self, indices: Tensor) -> bool:
        """Tell whether the samples at int64 [B], on the CPU, are all there."""
        return bool(self._there.index_select(0, self._places(indices)).all())

    def get(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Return copies of what is stored of the samples at int64 [B]: `[B, *spec.shape]` for each of `specs`.

        Raises:
            KeyError: one of them is not there.
        """
        if not self.has(indices):
            missing = indices[~self._there[self._places(indices)]]
            raise KeyError(f"{len(missing)} of {len(indices)} samples are not stored, the first {int(missing[0])}")
        places = self._places(indices)
        return tuple(self._gathered(*pair, places) for pair in zip(self._rows, self.specs, strict=True))

    def put(self, indices: Tensor, tensors: Sequence[Tensor]) -> None:
        """Store the samples at int64 [B], each once: `[B, *spec.shape]` for each of `specs`, on any device.

        Raises:
            ValueError: the tensors are not of the shapes and types in `specs`.
            StoreError: there is no room. What is there can be had as before; nothing more is taken.
        """
        for tensor, spec in zip(tensors, self.specs, strict=True):
            if tensor.shape != (len(indices), *spec.shape) or tensor.dtype != spec.dtype:
                raise ValueError(f"{tuple(tensor.shape)} of {tensor.dtype} for {len(indices)} samples of {spec}")
        places = self._places(indices)
        new = ~self._there.index_select(0, places)
        if not self.writable or not new.any():
            return
        if not new.all():
            places, tensors = places[new], [tensor[new.to(tensor.device)] for tensor in tensors]
        plain = [tensor.detach().resolve_conj().resolve_neg().contiguous() for tensor in tensors]
        self._write(places, [tensor.view(INTEGERS[tensor.dtype.itemsize]) for tensor in plain])
        self._there[places] = True

    def refresh(self) -> None:
        """Look again at what another run has stored by now, where others have access to this store.

        Raises:
            StoreError: it can be used no longer.
        """

    def close(self) -> None:
        """Give back what the store takes up; it is empty then."""
        self.writable = False
        self._there.zero_()
        self._rows = self._allocated(0, "cpu")

    def _places(self, indices: Tensor) -> Tensor:
        """Return the rows of the samples at `indices`."""
        return indices

    def _write(self, places: Tensor, rows: list[Tensor]) -> None:
        raise NotImplementedError

    def _allocated(self, num_samples: int, device: torch.device | str) -> list[Tensor]:
        return [
            torch.empty((num_samples, *spec.shape), dtype=INTEGERS[spec.dtype.itemsize], device=device)
            for spec in self.specs
        ]

    def _gathered(self, rows: Tensor, spec: Spec, places: Tensor) -> Tensor:
        if not self._pinned:
            return rows.index_select(0, places.to(rows.device)).view(spec.dtype)
        gathered = torch.empty((len(places), *spec.shape), dtype=rows.dtype, pin_memory=True)
        return torch.index_select(rows, 0, places, out=gathered).view(spec.dtype)


class Part(Store):
    """Some of a store's samples in a row, numbered from 0: training and validation data share one store.

    Args:
        whole: the store, which is closed for itself.
        start: the number there of the first sample.
        num_samples: how many there are.
    """

    def __init__(self, whole: Store, start: int, num_samples: int) -> None:
        super().__init__(whole.specs, 0, pinned=False)
        self.num_samples = num_samples
        self._whole, self._start = whole, start

    def has(self, indices: Tensor) -> bool:
        return self._whole.has(indices + self._start)

    def get(self, indices: Tensor) -> tuple[Tensor, ...]:
        return self._whole.get(indices + self._start)

    def put(self, indices: Tensor, tensors: Sequence[Tensor]) -> None:
        self._whole.put(indices + self._start, tensors)

    def refresh(self) -> None:
        self._whole.refresh()


class MemoryStore(Store):
    """Activations in memory, which is taken up as it fills.

    Args:
        specs: shape and type of what is stored of each sample.
        num_samples: how many samples there is room for.
        device: where they are kept; `get` returns them there.
        pinned: `get` returns page-locked memory, which a CUDA device copies without a wait; for the CPU.

    Raises:
        StoreError: there is not that much memory.
    """

    def __init__(
        self, specs: Sequence[Spec], num_samples: int, *, device: torch.device | str = "cpu", pinned: bool = False
    ) -> None:
        super().__init__(specs, num_samples, pinned)
        try:
            self._rows = self._allocated(num_samples, device)
        except RuntimeError as error:  # torch's for memory, of any device
            wanted = num_samples * sum(spec.bytes for spec in self.specs)
            raise StoreError(f"there is no room for {wanted / 1e9:.1f} GB in the memory of {device}") from error

    def _write(self, places: Tensor, rows: list[Tensor]) -> None:
        for kept, new in zip(self._rows, rows, strict=True):
            kept.index_copy_(0, places.to(kept.device), new.to(kept.device))
