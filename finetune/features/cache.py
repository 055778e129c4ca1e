"""A run's cache of frozen prefixes: cut anew in each phase, with one line that says what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
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
from finetune.features.costs import Costs, forward_seconds, replay_seconds, timed
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

    Every phase fills its own store from the data. The stored activations of the phase before could only help
    where more is frozen than then, which no strategy here does: unfreezing moves the boundary towards the
    input, before what is stored. In a folder a boundary that comes up again is found, in whichever run.

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
        with self._autocast():
            served = self._served(model, cacheable, epochs)
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

    def _served(self, model: nn.Module, parts: list[Batches], epochs: int) -> dict[Any, CachedBatches] | str:
        """Cut the prefix, open a store for it and measure a batch; return what serves from it, or why nothing does."""
        auto = self._where == AUTO
        why_not = self._why_not_sought(model, parts, epochs)
        if why_not:
            return why_not
        again = 3 if auto and not parts[0].workers else 1
        load, batches = timed(lambda: list(islice(parts[0].epoch(0), 1)), repeats=again)
        if not batches:
            return "there is no batch"
        inputs = split_batch(batches[0])[0]
        costs = Costs(0.0 if parts[0].workers else load, forward_seconds(model, inputs) if auto else 0.0)
        why_not = planner.too_short(costs, sum(map(len, parts)), epochs) if auto else None
        prefix = why_not or cut_prefix(model, inputs)
        if isinstance(prefix, str):
            return prefix
        if auto and prefix.share < planner.LEAST_SHARE:
            return f"only {prefix.share:.0%} of the forward pass comes before what trains"
        return self._stored(model, prefix, parts, inputs, costs, epochs)

    def _stored(
        self, model: nn.Module, prefix: Prefix, parts: list[Batches], inputs: Any, costs: Costs, epochs: int
    ) -> dict[Any, CachedBatches] | str:
        """Open a store for the prefix; return what serves from it, or why nothing does."""
        found = self._with_room(prefix, parts)
        if isinstance(found, str):
            return found
        all_parts, (parts, tier) = parts, found
        try:
            self._store = store = self._opened(prefix, parts, tier)
            there = store.count() if tier == FOLDER else 0
            offered = [Part(store, _samples(parts[:n]), len(batches.source)) for n, batches in enumerate(parts)]
            pairs = zip(parts, offered, strict=True)
            served = {b: CachedBatches(b, prefix, part, handed_on=self._handed_on) for b, part in pairs}
            costs = self._measured(model, prefix, served[parts[0]], offered[0], inputs, costs)
        except (StoreError, DivergedError) as error:
            return str(error)
        need = Need(_samples(parts), sum(map(len, parts)), _samples(parts) * prefix.bytes_per_sample)
        if self._where == AUTO and not planner.pays(costs, need, epochs, tier):
            return f"to read back {prefix.share:.0%} of the forward pass takes about as long as to compute it"
        line = planner.said(prefix, need, str(self._where) if tier == FOLDER else tier, there)
        if len(parts) < len(all_parts):
            line += ", training data only, as there is no room for more"
        seconds = sum(planner.epoch_seconds(costs, batches) for batches in parts)
        log.info("%s; %s should then take %.2g s", line, "an epoch" if parts[0].shuffle else "its evaluation", seconds)
        return served

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
        self, model: nn.Module, prefix: Prefix, cached: CachedBatches, store: Store, inputs: Any, costs: Costs
    ) -> Costs:
        """Measure the first batch; what is computed of it for that is stored.

        Raises:
            StoreError: it cannot be stored.
            DivergedError: the model does something else on a whole batch.
        """
        indices, compute = cached.indices(0)[0], 0.0
        if not store.has(indices):
            compute, activations = timed(lambda: prefix.compute(inputs), repeats=1)
            store.put(indices, activations)
        if not store.has(indices):  # another run is filling the store
            return replace(costs, compute=compute)
        cached.remember(inputs)
        served, backward = replay_seconds(model, cached)
        return replace(costs, compute=compute, served=served, backward=backward)


def _samples(parts: Sequence[Batches]) -> int:
    return sum(len(batches.source) for batches in parts)
