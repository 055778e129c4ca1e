"""A run's cache of frozen prefixes: cut anew in each phase, with one line that says what came of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from finetune.caching import planner
from finetune.caching.cached_batches import CachedBatches, same_each_epoch
from finetune.caching.costs import Costs, forward_costs, replay_seconds, timed
from finetune.caching.planner import DEVICE, DISK, MEMORY, Need, rows_of
from finetune.caching.prefix.cut import PLACE_COUNTS, cut_prefix
from finetune.caching.prefix.prefix import DivergedError, Prefix
from finetune.caching.store.disk import DiskStore
from finetune.caching.store.keys import fingerprint, keys_of_views
from finetune.caching.store.memory import MemoryStore, Part, Store, StoreError
from finetune.data.loading.batches import Batches
from finetune.data.preprocessing.pictures import Preprocessing
from finetune.data.preprocessing.sound import SoundPreprocessing
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.data.sources.base import split_batch
from finetune.errors import ArgumentError, nearest
from finetune.model.compiling import is_compiled
from finetune.model.freezing import trainable
from finetune.model.network import Network
from finetune.model.stages import Stage

AUTO, FOLDER = "auto", "folder"

# Where activations may go, in the order in which room is sought; a folder of the user's has room or fails.
_TIERS = {AUTO: (DEVICE, MEMORY, DISK), MEMORY: (DEVICE, MEMORY), DISK: (DISK,)}
_OWN_PREPROCESSING = (type(None), Preprocessing, TextPreprocessing, SoundPreprocessing)

log = logging.getLogger("finetune")


class Cache:
    """What is stored of the prefix of the present phase, and in `said` the lines that tell the user.

    `rows` says how many inputs are stored or to be, and `there` how many of them another run had stored already.

    Every phase fills its own store from the data. The stored activations of the phase before could only help
    where more is frozen than then, which no strategy here does: unfreezing moves the boundary towards the
    input, before what is stored. In a folder a boundary that comes up again is found, in whichever run.

    Args:
        where: `"auto"`, `"memory"`, `"disk"` or a folder. But for the first the user asked for it, so that
            it is not weighed whether it pays.
        stages: gives the stages of the model from the stem to the head.
        autocast: makes the context of the forward pass.
        changed: a callback changes the inputs of each training batch before the step.
        declined: why the model is not to be cut at all, `""` if it may be.
        guarded: steps or callbacks of the user's own may change the model or a batch.
    """

    def __init__(
        self,
        where: str | Path,
        stages: Callable[[], Sequence[Stage]],
        autocast: Any,
        *,
        changed: bool = False,
        declined: str = "",
        guarded: bool = True,
    ) -> None:
        self._where, self._stages, self._autocast = where, stages, autocast
        self._changed, self._declined, self._guarded = changed, declined, guarded
        self._plain: tuple[Batches, Batches | None] | None = None
        self._store: Store | None = None
        self.said: list[str] = []
        self.rows = self.there = 0

    def cut(self, model: nn.Module, train: Any, val: Any, epochs: int, in_views: bool | None = None) -> tuple[Any, Any]:
        """Return the batches for a phase of so many epochs, served from the prefix at the present freeze state.

        Where the library chose the augmentation, a few views of each sample may take its place; `in_views`
        says whether they do, as they did before a run was resumed.
        """
        self.close()
        self.said = []
        self.rows = self.there = 0
        self._plain = given, val = self._plain or (train, val)
        if self._declined:
            self._say(f"cache: none, as {self._declined}")
            return given.in_views(bool(in_views)), val
        train = given.in_views(self._takes_views(model, given, epochs) if in_views is None else in_views)
        if said := approximation(train, given):
            self._say(f"augmentation: {said}")
        reason = "a callback changes the inputs" if self._changed else self._differs(train)
        parts = [] if reason else [train]
        parts += [] if val is None or self._differs(val) else [val]
        served: dict[Any, CachedBatches] | str = reason
        if parts:
            with self._autocast():
                served = self._served(model, parts, epochs)
        if isinstance(served, str):
            self.close()
            self._say(f"cache: none, as {reason or served}")
            return train, val
        if reason:
            self._say(f"cache: validation data only, as {reason}")
        return served.get(train, train), served.get(val, val)

    @property
    def _asked(self) -> bool:
        """Whether the user asked for it to be stored, so that it is not weighed whether it pays."""
        return self._where != AUTO

    def _differs(self, batches: Batches) -> str:
        return same_each_epoch(batches, asked=self._asked)

    def _takes_views(self, model: nn.Module, batches: Batches, epochs: int) -> bool:
        """Tell whether few views of each sample are shown in this phase: below a head that trains alone.

        That goes by facts and not by what was measured, so that the same run shows the same pictures.
        """
        viewed = batches.in_views()
        if viewed is batches or self._changed or self._differs(viewed):
            return False
        head = {*self._stages()[-1].parameters}
        need = Need.of([viewed], epochs)
        return trainable(model).keys() <= head and not planner.not_sought(need, asked=self._asked)

    def close(self) -> None:
        """Let go of what is stored; what is kept in a folder of the user's is written to the end."""
        if self._store is not None:
            self._store.close()
        self._store = None

    def _say(self, line: str) -> None:
        log.info(line)
        self.said.append(line)

    def _why_not_sought(self, model: nn.Module, need: Need) -> str | None:
        if not self._asked:
            stem, training = {*self._stages()[0].parameters}, trainable(model).keys()
            if stem and stem <= training:
                return "the first layers train"
        again = isinstance(self._where, Path)  # other runs may read what this one sees only once
        return None if again else planner.not_sought(need, asked=self._asked)

    def _served(self, model: nn.Module, parts: list[Batches], epochs: int) -> dict[Any, CachedBatches] | str:
        """Cut the prefix, open a store for it and measure a batch; return what serves from it, or why nothing does."""
        auto, need = not self._asked, Need.of(parts, epochs)
        why_not = self._why_not_sought(model, need)
        if why_not:
            return why_not
        again = 3 if auto and not parts[0].workers else 1
        load, batches = timed(lambda: list(islice(parts[0].epoch(0), 1)), repeats=again)
        if not batches:
            return "there is no batch"
        inputs = split_batch(batches[0])[0]
        load = 0.0 if parts[0].workers else load
        costs = forward_costs(model, inputs, load) if auto else Costs(load, 0.0)
        why_not = planner.too_short(costs, need) if auto else None
        prefix = why_not or cut_prefix(model, inputs)
        if isinstance(prefix, str):
            return prefix
        if auto and prefix.share < planner.LEAST_SHARE:
            return f"only {prefix.share:.0%} of the forward pass comes before what trains"
        return self._stored(model, prefix, parts, batches[0], costs, epochs)

    def _stored(
        self, model: nn.Module, prefix: Prefix, parts: list[Batches], batch: Any, costs: Costs, epochs: int
    ) -> dict[Any, CachedBatches] | str:
        """Open a store for the prefix; return what serves from it, or why nothing does."""
        found = self._with_room(prefix, parts)
        if isinstance(found, str):
            return found
        all_parts, (parts, tier) = parts, found
        try:
            self._store = store = self._opened(model, prefix, parts, tier)
            there = store.count() if tier == FOLDER else 0
            offered = [Part(store, rows_of(parts[:n]), rows_of([batches])) for n, batches in enumerate(parts)]
            pairs = zip(parts, offered, strict=True)
            served = {b: CachedBatches(b, prefix, part, guarded=self._guarded) for b, part in pairs}
            costs = self._measured(model, prefix, served[parts[0]], offered[0], batch, costs)
        except (StoreError, DivergedError) as error:
            return str(error)
        need = Need.of(parts, epochs)
        if not self._asked and not planner.pays(costs, need, prefix.bytes_per_sample, tier):
            return f"to read back {prefix.share:.0%} of the forward pass takes about as long as to compute it"
        line = planner.said(prefix, need, str(self._where) if tier == FOLDER else tier, there)
        if len(parts) < len(all_parts):
            line += ", training data only, as there is no room for more"
        self.rows, self.there = need.rows, there
        seconds = sum(planner.epoch_seconds(costs, batches) for batches in parts)
        self._say(f"{line}; {'an epoch' if parts[0].shuffle else 'its evaluation'} should then take {seconds:.2g} s")
        return served

    def _with_room(self, prefix: Prefix, parts: list[Batches]) -> tuple[list[Batches], str] | str:
        """Choose what is stored and where: all of it in the first place with room, else the first part alone."""
        if isinstance(self._where, Path):
            return parts, FOLDER
        device, tiers = parts[0].device, _TIERS[self._where]
        for chosen in (parts, parts[:1]):
            tier = planner.place_for(rows_of(chosen) * prefix.bytes_per_sample, device, tiers)
            if tier is not None:
                return chosen, tier
        return planner.no_room(rows_of(parts) * prefix.bytes_per_sample, rows_of(parts), device, tiers[-1])

    def _opened(self, model: nn.Module, prefix: Prefix, parts: list[Batches], tier: str) -> Store:
        rows, device = rows_of(parts), parts[0].device
        pinned = device.type == "cuda"
        if tier in (DEVICE, MEMORY):
            at = device if tier == DEVICE else "cpu"
            return MemoryStore(prefix.specs, rows, device=at, pinned=pinned and tier == MEMORY)
        if tier == DISK:
            return DiskStore(None, prefix.specs, rows, pinned=pinned)
        preparation = parts[0].preprocessing  # that of the model, and so of all parts
        if type(preparation) not in _OWN_PREPROCESSING:
            raise StoreError("its preprocessing is of a class that is not the library's")
        layout = [list(parameter.stride()) for parameter in model.parameters()]  # decides what a kernel rounds
        described = {"preprocessing": preparation and preparation.to_dict(), "layout": layout}
        name = fingerprint(prefix, described)
        keys = [keys_of_views(batches) for batches in parts]
        known = [key for key in keys if key is not None]
        if name is None or len(known) < len(keys):
            raise StoreError("what it is computed from cannot be told in full, so that it would not be found again")
        return DiskStore(self._where, prefix.specs, np.concatenate(known), name, pinned=pinned)

    def _measured(
        self, model: nn.Module, prefix: Prefix, cached: CachedBatches, store: Store, batch: Any, costs: Costs
    ) -> Costs:
        """Measure the first batch; what is computed of it for that is stored.

        Raises:
            StoreError: it cannot be stored.
            DivergedError: the model does something else on a whole batch.
        """
        indices, compute = cached.rows(0)[0], 0.0
        if not store.has(indices):
            inputs = split_batch(batch)[0]
            compute, activations = timed(lambda: prefix.compute(inputs), repeats=1)
            if not prefix.agrees(inputs, activations):
                raise DivergedError(PLACE_COUNTS)
            store.put(indices, activations)
        if not store.has(indices):  # another run is filling the store
            return replace(costs, compute=compute)
        cached.remember(batch, cached.indices(0)[0])
        served, backward = replay_seconds(model, cached)
        plain = min(costs.plain, compute + served) if compute else costs.plain  # of the whole batch, now
        return replace(costs, plain=plain, compute=compute, served=served, backward=backward)


def approximation(batches: Batches, given: Batches) -> str:
    """Return what is to be said of the views in these batches, made of those that `fit` was given; `""` if nothing."""
    if batches.views is None or batches.views == 1:
        return ""
    if batches is given:
        return f"{batches.views} views of each picture, in turn, an approximation of new ones in every epoch"
    return (
        f"{batches.views} views of each picture, one of them as it is evaluated, in turn, an approximation of the new "
        "crops in every epoch that cannot be stored; augment_views=0 asks for these"
    )


def open_cache(
    cache: str | Path | bool, network: Network, autocast: Any, *, changed: bool, guarded: bool
) -> Cache | None:
    """Return the cache that the `cache` argument of `fit` asks for, or None for no cache.

    Args:
        cache: `"auto"`, `"memory"`, `"disk"`, a folder or False.
        network: The model.
        autocast: Makes the context of the forward pass.
        changed: Whether a callback changes the inputs of training batches.
        guarded: Whether custom steps or callbacks may change the model or a batch.

    Raises:
        ArgumentError: If `cache` is neither a kind of cache nor a folder, present or to be made.
    """
    where = _place(cache)
    if where is None:
        return None
    return Cache(where, network.stages, autocast, changed=changed, declined=_not_to_be_cut(network), guarded=guarded)


def _not_to_be_cut(network: Network) -> str:
    """Return why the forward pass cannot be split, or `""`."""
    if network.wrapped is not network.module:
        wrapper = type(network.wrapped).__name__
        return f"the model is wrapped in {wrapper}, which may compile or divide its forward pass"
    if is_compiled(network.module):
        return "the model came compiled; FineTuner(model, compile=True) compiles only the parts that are needed"
    return ""


def _place(cache: str | Path | bool) -> str | Path | None:
    kinds = ("auto", "memory", "disk")
    expected = f"Expected cache to be 'auto', 'memory', 'disk', a folder or False, but got {cache!r}."
    if cache is False or cache in kinds:
        return None if cache is False else cache
    if not isinstance(cache, (str, os.PathLike)) or not str(cache):
        raise ArgumentError(expected)
    folder = Path(cache).expanduser()
    meant = nearest(str(cache), kinds) if isinstance(cache, str) and not folder.exists() else ""
    around = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if meant or not around.is_dir():
        raise ArgumentError(f"{expected}{meant or f' {str(around)!r} is not a folder.'}")
    return folder
