"""Activations in host or device memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.caching.store.store import Spec, Store, StoreError


class MemoryStore(Store):
    """Activations in memory, whose pages the system assigns as the store fills.

    Args:
        specs: Shape and dtype per row, one for each stored tensor.
        num_rows: Number of rows to allocate.
        device: Device on which rows are kept and returned by `get`.
        pinned: Whether `get` returns page-locked memory, so that a CUDA device copies it asynchronously. CPU only.

    Raises:
        StoreError: If there is not enough memory.
    """

    def __init__(
        self, specs: Sequence[Spec], num_rows: int, *, device: torch.device | str = "cpu", pinned: bool = False
    ) -> None:
        super().__init__(specs, num_rows, pinned)
        try:
            self._rows = self._allocated(num_rows, device)
        except RuntimeError as error:  # out of memory, on any device
            wanted = num_rows * sum(spec.bytes for spec in self.specs)
            raise StoreError(f"there is no room for {wanted / 1e9:.1f} GB in the memory of {device}") from error

    def _write(self, places: Tensor, values: list[Tensor]) -> None:
        for kept, new in zip(self._rows, values, strict=True):
            kept.index_copy_(0, places.to(kept.device), new.to(kept.device))
