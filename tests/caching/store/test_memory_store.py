"""The store in memory, of the host or a device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.caching.store.disk_store import DiskStore
from finetune.caching.store.memory_store import MemoryStore
from finetune.caching.store.store import Spec, StoreError
from tests.helpers.stores import KINDS, SPECS, check_stored, equal, fill, values


def test_too_little_memory() -> None:
    with pytest.raises(StoreError, match="no room for"):
        MemoryStore([Spec((1 << 50,), torch.float32)], 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_pinned_rows_are_the_same(kind: str, tmp_path: Path, accelerator: torch.device) -> None:
    store = (
        MemoryStore(SPECS, 7, pinned=True)
        if kind == "memory"
        else DiskStore(tmp_path if kind == "disk" else None, SPECS, 7, "a1", pinned=True)
    )
    fill(store)
    assert all(tensor.is_pinned() or not tensor.numel() for tensor in store.get(torch.tensor([1, 0])))
    assert check_stored(store) == 7
    store.close()


def test_rows_on_a_device(accelerator: torch.device) -> None:
    store = MemoryStore(SPECS, 7, device=accelerator)
    fill(store)
    taken = store.get(torch.tensor([6, 2, 2]))
    assert {tensor.device.type for tensor in taken} == {accelerator.type}
    assert equal([tensor.cpu() for tensor in taken], values(SPECS, torch.tensor([6, 2, 2])))
