"""Datasets of given items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset


class Items(Dataset[Any]):
    """A map-style dataset of given items, with any attributes."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Flow(IterableDataset[Any]):
    """An iterable dataset of given items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Numbers(Flow):
    """Five labeled numbers, one after the other."""

    def __init__(self) -> None:
        super().__init__([(torch.tensor([float(i)]), i % 2) for i in range(5)])
