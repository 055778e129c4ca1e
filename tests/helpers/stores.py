"""Fill stores of activations with values that follow from the row numbers, and check them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from finetune.caching.store.disk_store import DiskStore
from finetune.caching.store.memory_store import MemoryStore
from finetune.caching.store.store import Spec, Store

SPECS = (Spec((3, 2), torch.float32), Spec((), torch.int64), Spec((2, 0), torch.float32), Spec((5,), torch.bfloat16))
KINDS = ["memory", "disk", "disk, not kept", "temporary"]


def values(specs: Sequence[Spec], indices: Tensor, version: int = 0) -> tuple[Tensor, ...]:
    """Return tensors to store for some rows, as a function of the row numbers."""
    made = []
    for spec in specs:
        largest = 1 if spec.dtype == torch.bool else 250
        bits = (indices[:, None] * 31 + torch.arange(spec.bytes) * 7 + 1 + version) % (largest + 1)
        made.append(bits.to(torch.uint8).flatten().view(spec.dtype).reshape(len(indices), *spec.shape))
    return tuple(made)


def equal(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether tensors are equal bit for bit."""
    return len(ones) == len(others) and all(
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.flatten().view(torch.uint8).equal(other.flatten().view(torch.uint8))
        for one, other in zip(ones, others, strict=True)
    )


def check_stored(store: Store) -> int:
    """Check every row that the store has, and return their number."""
    there = [index for index in range(store.num_rows) if store.has(torch.tensor([index]))]
    assert equal(store.get(torch.tensor(there, dtype=torch.int64)), values(store.specs, torch.tensor(there).long()))
    return len(there)


def fill(store: Store, start: int = 0) -> None:
    for indices in torch.arange(start, store.num_rows).split(3):
        store.put(indices, values(store.specs, indices))


@contextmanager
def opened(kind: str, folder: Path, specs: Sequence[Spec], num_rows: int) -> Iterator[Store]:
    if kind == "memory":
        store: Store = MemoryStore(specs, num_rows)
    else:
        kept_bytes = 0 if kind == "disk, not kept" else 1 << 20
        store = DiskStore(None if kind == "temporary" else folder, specs, num_rows, "a1", kept_bytes=kept_bytes)
    yield store
    store.close()
