"""Pictures that are decoded and resized once: as bytes they stay in memory for the epochs to come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finetune.data.loading.free_memory import free_memory
from finetune.data.preprocessing.base import PICTURE, InputPreprocessing
from finetune.data.preprocessing.pictures import Preprocessing
from finetune.data.sources.base import Source

# Of the memory that is free, so much at most is taken without being asked, by training and by validation pictures
# each. With the half that activations may take, a tenth is left.
BUDGET_SHARE = 0.2


class KeptPictures:
    """The pictures of a source as the device gets them, uint8 [N, C, H, W], put in as their batches pass by.

    Memory is taken as it is filled. A file that changed since is read anew.
    """

    def __init__(self, source: Source, preprocessing: Preprocessing) -> None:
        self._targets = source.targets
        self._pictures = torch.empty(_shape(source, preprocessing), dtype=torch.uint8)
        self._there = torch.zeros(len(source), dtype=torch.bool)
        self._unchanged = source.watch()

    def has(self, indices: Tensor) -> bool:
        """Tell whether every sample of int64 [B] is here."""
        there = bool(self._there[indices].all())
        return there and (self._unchanged is None or all(map(self._unchanged, indices.tolist())))

    def put(self, indices: Tensor, batch: Any) -> None:
        """Keep the pictures of a batch, the samples at int64 [B]."""
        self._pictures[indices] = batch if self._targets is None else batch[0]
        self._there[indices] = True

    def get(self, indices: Tensor) -> Any:
        """Return the batch of the samples at int64 [B], the same as when it was loaded."""
        pictures = self._pictures[indices]
        return pictures if self._targets is None else [pictures, self._targets[indices]]


def kept_pictures(source: Source, preprocessing: InputPreprocessing | None) -> KeptPictures | None:
    """Return a place for the pictures of a source; None where they are something else, or too many."""
    pictures = source.kind == PICTURE and source.indexed and not source.stochastic
    if not pictures or not isinstance(preprocessing, Preprocessing):
        return None
    wanted = torch.Size(_shape(source, preprocessing)).numel()
    fits = wanted <= BUDGET_SHARE * free_memory(torch.device("cpu"))
    return KeptPictures(source, preprocessing) if fits else None


def _shape(source: Source, preprocessing: Preprocessing) -> tuple[int, ...]:
    return len(source), preprocessing.channels, *preprocessing.crop_size
