"""A run's cache of frozen prefixes: cut anew in each phase, with one line that says what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from finetune.data.audio import AudioPreprocessing
from finetune.data.base import split_batch
from finetune.data.batches import Batches
from finetune.data.text import TextPreprocessing
from finetune.data.transforms import Preprocessing
from finetune.features import planner
from finetune.features.cached import CachedBatches, same_each_epoch
from finetune.features.costs import Costs, measured
from finetune.features.disk import DiskStore
from finetune.features.fingerprint import fingerprint, keys_of
from finetune.features.planner import DEVICE, DISK, MEMORY, Need
from finetune.features.prefix import DivergedError, Prefix, cut_prefix
from finetune.features.store import MemoryStore, Part, Store, StoreError
from finetune.model.freezing import trainable

AUTO, FOLDER = "auto", "folder"

# Where activations may go, in the order in which room is sought; a folder of the user's has room or fails.
_TIERS = {AUTO: (DEVICE, MEMORY, DISK), MEMORY: (DEVICE, MEMORY), DISK: (DISK,)}
_OWN_PREPROCESSING = (type(None), Preprocessing, TextPreprocessing, AudioPreprocessing)

log = logging.getLogger("finetune")


class Cache:
    """What is stored of the prefix of the present phase.

    Args:
        where: `"auto"`, `"memory"`, `"disk"` or a folder. But for the first the user asked for it, so that
            it is not weighed whether it pays.
        stem: gives the names of the parameters of the model's first layers.
        handed_on: the steps are the library's, which only hand their inputs on to the model.
        autocast: makes the context of the forward pass.
    """

    def __init__(self, where: str | Path, *, stem: Callable[[], Iterable[str]], handed_on: bool, autocast: Any) -> None:
        self._where, self._stem, self._handed_on, self._autocast = where, stem, handed_on, autocast
        self._plain: tuple[Batches, Batches | None] | None = None
        self._store: Store | None = None

    def cut(self, model: nn.Module, train: Any, val: Any, epochs: int) -> tuple[Any, Any]:
        """Return the batches for a phase of so many epochs, served from the prefix at the present freeze state."""
        self.close()
        self._plain = plain_train, plain_val = self._plain or (train, val)
        reason = same_each_epoch(plain_train)
        given = [batches for batches in (plain_train, plain_val) if batches is not None]
        cacheable = [batches for batches in given if not same_each_epoch(batches)]
        if not cacheable:
            return self._without(reason)
        why_not = self._why_not_sought(model, cacheable, epochs)
        if why_not:
            return self._without(why_not)
        begun = time.perf_counter()
        batch = next(iter(cacheable[0].epoch(0)), None)
        load = 0.0 if cacheable[0].workers else time.perf_counter() - begun
        if batch is None:
            return self._without("there is no batch")
        with self._autocast():
            served = self._served(model, cacheable, batch, load, epochs)
        if isinstance(served, str):
            self.close()
            return self._without(served)
        if reason:
            log.info("cache: validation data only, as %s", reason)
        return served.get(plain_train, plain_train), served.get(plain_val, plain_val)

    def close(self) -> None:
        """Let go of what is stored; what is kept in a folder of the user's is written to the end."""
        if self._store is not None:
            self._store.close()
        self._store = None

    def _without(self, reason: str) -> tuple[Any, Any]:
        assert self._plain is not None
        log.info("cache: none, as %s", reason)
        return self._plain

    def _why_not_sought(self, model: nn.Module, parts: list[Batches], epochs: int) -> str | None:
        if self._where == AUTO:
            stem, training = set(self._stem()), trainable(model).keys()
            if stem and stem <= training:
                return "the first layers train"
            return planner.not_sought(sum(len(batches.source) for batches in parts), epochs)
        if epochs == 1 and self._where in (MEMORY, DISK):
            return "each sample is seen only once"
        return None

    def _served(
        self, model: nn.Module, parts: list[Batches], batch: Any, load: float, epochs: int
    ) -> dict[Any, CachedBatches] | str:
        """Cut the prefix, open a store for it and measure a batch; return what serves from it, or why nothing does."""
        prefix = cut_prefix(model, split_batch(batch)[0])
        if isinstance(prefix, str):
            return prefix
        auto = self._where == AUTO
        if auto and prefix.share < planner.LEAST_SHARE:
            return f"only {prefix.share:.0%} of the forward pass comes before what trains"
        found = self._with_room(prefix, parts)
        if isinstance(found, str):
            return found
        all_parts, (parts, tier) = parts, found
        try:
            self._store = store = self._opened(prefix, parts, tier)
            offered = [Part(store, _samples(parts[:n]), len(batches.source)) for n, batches in enumerate(parts)]
            there = store.count() if tier == FOLDER else 0
            costs = self._measured(model, prefix, parts[0], offered[0], batch, load)
        except (StoreError, DivergedError) as error:
            return str(error)
        skips = self._handed_on and not prefix.reads_inputs and parts[0].source.targets is not None
        need = Need(_samples(parts), sum(map(len, parts)), _samples(parts) * prefix.bytes_per_sample)
        if auto and not planner.pays(costs, need, epochs, tier, skips=skips):
            return f"to read back {prefix.share:.0%} of the forward pass takes about as long as to compute it"
        kept = planner.said(prefix, need, str(self._where) if tier == FOLDER else tier, there)
        if len(parts) < len(all_parts):
            kept += ", training data only, as there is no room for more"
        seconds = sum(planner.epoch_seconds(costs, batches, skips=skips) for batches in parts)
        log.info("%s; %s should then take %.2g s", kept, "an epoch" if parts[0].shuffle else "its evaluation", seconds)
        return {
            batches: CachedBatches(batches, prefix, part, handed_on=self._handed_on)
            for batches, part in zip(parts, offered, strict=True)
        }

    def _with_room(self, prefix: Prefix, parts: list[Batches]) -> tuple[list[Batches], str] | str:
        """Choose what is stored and where: all of it in the first place with room, else the first part alone."""
        if isinstance(self._where, Path):
            return parts, FOLDER
        device, tiers = parts[0].device, _TIERS[self._where]
        for chosen in (parts, parts[:1]):
            tier = planner.place_for(_samples(chosen) * prefix.bytes_per_sample, device, tiers)
            if tier is not None:
                return chosen, tier
        return planner.no_room(_samples(parts) * prefix.bytes_per_sample, _samples(parts), device, tiers[-1])

    def _opened(self, prefix: Prefix, parts: list[Batches], tier: str) -> Store:
        samples, device = _samples(parts), parts[0].device
        pinned = device.type == "cuda"
        if tier in (DEVICE, MEMORY):
            at = device if tier == DEVICE else "cpu"
            return MemoryStore(prefix.specs, samples, device=at, pinned=pinned and tier == MEMORY)
        if tier == DISK:
            return DiskStore(None, prefix.specs, samples, pinned=pinned)
        preparation = parts[0].preprocessing  # that of the model, and so of all parts
        if type(preparation) not in _OWN_PREPROCESSING:
            raise StoreError("its preprocessing is of a class that is not the library's")
        name = fingerprint(prefix, preprocessing=preparation and preparation.to_dict())
        keys = [keys_of(batches.source) for batches in parts]
        known = [key for key in keys if key is not None]
        if name is None or len(known) < len(keys):
            raise StoreError("what it is computed from cannot be told in full, so that it would not be found again")
        return DiskStore(self._where, prefix.specs, np.concatenate(known), name, pinned=pinned)

    def _measured(
        self, model: nn.Module, prefix: Prefix, batches: Batches, store: Store, batch: Any, load: float
    ) -> Costs:
        """Measure the first batch; what is computed of it for that is stored."""
        indices = batches.indices(0)[0]
        stored = tuple(kept.to(batches.device) for kept in store.get(indices)) if store.has(indices) else None
        costs, activations = measured(
            model, prefix, batch, load, stored, trains=batches.shuffle, whole=self._where == AUTO
        )
        store.put(indices, activations)
        return costs


def _samples(parts: Sequence[Batches]) -> int:
    return sum(len(batches.source) for batches in parts)
