"""The feature cache of a run, rebuilt in each phase, with a line for the user about each decision."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.caching import planner
from finetune.caching.cached_batches import CachedBatches, varies
from finetune.caching.declined import Declined
from finetune.caching.planner import DEVICE, DISK, MEMORY, Workload, num_rows
from finetune.caching.prefix.cut import POSITION_MATTERS, cut_prefix
from finetune.caching.prefix.prefix import Prefix
from finetune.caching.prefix.replay import DivergedError
from finetune.caching.store.disk_store import DiskStore
from finetune.caching.store.keys import fingerprint, keys_of_views
from finetune.caching.store.memory_store import MemoryStore
from finetune.caching.store.shared_store import SharedStore
from finetune.caching.store.store import Store, StoreError, StoreSlice
from finetune.caching.timings import Timings, time_forward, time_replay, timed
from finetune.data.batch import split_batch
from finetune.data.loading.batches import Batches
from finetune.data.loading.parts import release
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.sound import SoundPreprocessing
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.devices.device import has_own_memory
from finetune.display.progress.waits import busy
from finetune.distributed.world import ALONE, World
from finetune.errors import ArgumentError, nearest
from finetune.model.compiling import is_compiled
from finetune.model.freezing import trainable
from finetune.model.network import Network
from finetune.model.stages import Stage
from finetune.naming.paths import local_path

AUTO, FOLDER = "auto", "folder"

# Storage tiers by kind of cache, in order of preference. A folder is either used or declined.
_TIERS = {AUTO: (DEVICE, MEMORY, DISK), MEMORY: (DEVICE, MEMORY), DISK: (DISK,)}
_OWN_PREPROCESSING = (type(None), Preprocessing, TextPreprocessing, SoundPreprocessing)
_SUGGESTED_VIEWS = 4

log = logging.getLogger("finetune")


class Cache:
    """Cached prefix activations of the current phase.

    Each phase fills its own store from the data. Activations of an earlier phase could only help if the later one froze
    more layers, which no strategy here does: unfreezing moves the boundary toward the input, before the stored tensors.
    In a folder, every run finds the activations at the same boundary.

    Args:
        where: `"auto"`, `"memory"`, `"disk"` or a folder. With `"auto"`, activations are cached only if that pays.
        stages: Function that returns the stages of the model, from the stem to the head.
        autocast: Function that returns the context of the forward pass.
        changed: Whether a callback changes the inputs of each training batch before the step.
        declined: Reason that the model must not be cut, or None.
        guarded: Whether custom steps or callbacks may change the model or a batch.
        world: Processes that train together, which decide alike and share the activations of their machine.

    Attributes:
        messages: Lines for the user about the current phase, which are also logged.
        rows: Number of inputs to store activations for.
        found: Number of those inputs that another run had already stored.
    """

    def __init__(
        self,
        where: str | Path,
        stages: Callable[[], Sequence[Stage]],
        autocast: Any,
        *,
        changed: bool = False,
        declined: Declined | None = None,
        guarded: bool = True,
        world: World = ALONE,
    ) -> None:
        self._where, self._stages, self._autocast, self._world = where, stages, autocast, world
        self._changed, self._declined, self._guarded = changed, declined, guarded
        self._plain: tuple[Batches, Batches | None] | None = None
        self._store: Store | None = None
        self.messages: list[str] = []
        self.rows = self.found = 0

    @busy("Planning the cache")
    def cut(self, model: nn.Module, train: Any, val: Any, epochs: int, in_views: bool | None = None) -> tuple[Any, Any]:
        """Cut the model in its current freeze state, and return the batches to train and evaluate on in this phase.

        Args:
            model: Model to cut.
            train: Training batches.
            val: Validation batches, or None.
            epochs: Number of epochs of the phase.
            in_views: Whether a few fixed views of each sample replace the default augmentation, as an earlier part of
                a resumed run decided. None decides anew.
        """
        self.close()
        self.messages = []
        self.rows = self.found = 0
        self._plain = given, val = self._plain or (train, val)
        if self._declined:
            self._say(f"cache: off, because {self._declined}")
            return given.in_views(bool(in_views)), val
        train = given.in_views(self._takes_views(model, given, epochs) if in_views is None else in_views)
        if note := describe_views(train, given):
            self._say(f"augmentation: {note}")
        parts = [] if val is None or varies(val, requested=self._requested) else [val]
        declined = self._training_declined(model, train, parts, epochs)
        if declined is None:
            parts = [train, *parts]
        served: dict[Any, CachedBatches] | Declined | None = declined
        if parts:
            with self._autocast():
                served = self._served(model, parts, epochs)
        if not isinstance(served, dict):
            self.close()
            self._say(f"cache: off, because {declined or served}")
            return train, val
        if declined:
            self._say(f"cache: validation data only, because {declined}")
        return served.get(train, train), served.get(val, val)

    def close(self) -> None:
        """Release the store. A store in the user's folder is flushed to disk."""
        if self._store is not None:
            self._store.close()
        self._store = None

    @property
    def _requested(self) -> bool:
        """Whether the user requested a cache, which is then used even if it saves no time."""
        return self._where != AUTO

    def _say(self, line: str) -> None:
        log.info(line)
        self.messages.append(line)

    def _training_declined(
        self, model: nn.Module, train: Batches, parts: list[Batches], epochs: int
    ) -> Declined | None:
        """Return the reason that training data is not cached, or None if it may be.

        Fixed views are suggested in place of fresh augmentation only if nothing else stands in the way of them.
        """
        if self._changed:
            return Declined("a callback changes the inputs")
        declined = varies(train, requested=self._requested)
        if declined or train.views is not None:
            return declined
        views = _SUGGESTED_VIEWS if isinstance(self._where, Path) else min(_SUGGESTED_VIEWS, max(1, epochs - 1))
        with self._autocast():
            remaining = self._fits([train.with_views(views), *parts], model, epochs)
        return remaining or Declined(
            f"the augmentation makes new images in every epoch; augment_views={views} would cycle {views} fixed views"
        )

    def _fits(self, parts: list[Batches], model: nn.Module, epochs: int) -> Declined | None:
        """Return the reason not to cache `parts` that is found without storing anything, or None."""
        found = self._cut(model, parts, epochs)
        if isinstance(found, Declined):
            return found
        room = self._with_room(found[0], parts)
        if isinstance(room, Declined):
            return room
        named = self._named(model, found[0], room[0]) if room[1] == FOLDER else None
        return named if isinstance(named, Declined) else None

    def _takes_views(self, model: nn.Module, batches: Batches, epochs: int) -> bool:
        """Return whether fixed views of each sample replace the default augmentation, which needs a frozen backbone.

        The decision does not depend on measurements, so the same run always uses the same images.
        """
        viewed = batches.in_views()
        if viewed is batches or self._changed or varies(viewed, requested=self._requested):
            return False
        head = {*self._stages()[-1].parameters}
        return trainable(model).keys() <= head and not self._too_few_samples(Workload.of([viewed], epochs))

    def _too_few_samples(self, workload: Workload) -> Declined | None:
        return planner.too_few_samples(workload, requested=self._requested)

    def _not_worth_cutting(self, model: nn.Module, workload: Workload) -> Declined | None:
        if not self._requested:
            stem, training = {*self._stages()[0].parameters}, trainable(model).keys()
            if stem and stem <= training:
                return Declined("the first layers are trainable")
        if all(parameter.requires_grad for parameter in model.parameters()):
            return Declined("no layer is frozen")
        # In a folder, other runs may read activations that this one reads only once.
        return None if isinstance(self._where, Path) else self._too_few_samples(workload)

    def _served(self, model: nn.Module, parts: list[Batches], epochs: int) -> dict[Any, CachedBatches] | Declined:
        """Cut the prefix, open a store and time a batch, and return cached batches for those in `parts`."""
        try:
            found = self._cut(model, parts, epochs)
            return found if isinstance(found, Declined) else self._stored(model, parts, epochs, *found)
        except torch.OutOfMemoryError:
            declined = Declined("the memory of the device does not hold a whole batch")
        release()
        return declined

    def _cut(self, model: nn.Module, parts: list[Batches], epochs: int) -> tuple[Prefix, Any, Timings] | Declined:
        """Cut the prefix if that may pay, and return it with the batch that it was cut on and its timings."""
        auto, workload = not self._requested, Workload.of(parts, epochs)
        declined = self._not_worth_cutting(model, workload)
        if declined:
            return declined
        repeats = 3 if auto and not parts[0].workers else 1
        load, batches = timed(lambda: list(islice(parts[0].epoch(0), 1)), repeats=repeats)
        if not batches:
            return Declined("there are no batches")
        batch = parts[0].stand_in() if batches[0] is None else batches[0]
        inputs = split_batch(batch)[0]
        load = 0.0 if parts[0].workers else load
        timings = time_forward(model, inputs, load) if auto else Timings(load=load, forward=0.0)
        timings = self._world.agreed(timings)
        declined = planner.too_little_time(timings, workload) if auto else None
        prefix = declined or cut_prefix(model, inputs)
        declined = self._declined_by_any(prefix)
        if isinstance(prefix, Declined):
            return prefix
        if declined:
            return declined
        if auto and prefix.share < planner.MIN_SHARE:
            return Declined(f"only {prefix.share:.0%} of the forward pass comes before the first trainable parameter")
        return prefix, batch, timings

    def _declined_by_any(self, found: object) -> Declined | None:
        """Return the reason of a process that declined, or None if none did, so that all do the same."""
        reasons = self._world.gathered(str(found) if isinstance(found, Declined) else None)
        return next((Declined(reason) for reason in reasons if reason is not None), None)

    def _stored(
        self, model: nn.Module, parts: list[Batches], epochs: int, prefix: Prefix, batch: Any, timings: Timings
    ) -> dict[Any, CachedBatches] | Declined:
        """Open a store for the prefix and time a batch, and return cached batches for those in `parts`."""
        room = self._with_room(prefix, parts)
        if isinstance(room, Declined):
            return room
        all_parts, (parts, tier) = parts, room
        measured: Timings | Declined
        try:
            store = self._opened(model, prefix, parts, tier)
            if isinstance(store, Declined):
                return store
            self._store = store
            found = store.count() if tier == FOLDER else 0
            slices = [StoreSlice(store, num_rows(parts[:n]), num_rows([batches])) for n, batches in enumerate(parts)]
            pairs = zip(parts, slices, strict=True)
            served = {b: CachedBatches(b, prefix, part, guarded=self._guarded) for b, part in pairs}
            measured = self._measured(model, prefix, served[parts[0]], slices[0], batch, timings)
        except (StoreError, DivergedError) as error:
            measured = Declined(str(error))
        declined = self._declined_by_any(measured)
        if isinstance(measured, Declined):
            return measured
        if declined:
            return declined
        timings = self._world.agreed(measured)
        workload = Workload.of(parts, epochs)
        if not self._requested and not planner.pays(timings, workload, prefix.bytes_per_sample, tier):
            return Declined(f"reading back {prefix.share:.0%} of the forward pass takes about as long as computing it")
        line = planner.describe(prefix, workload, str(self._where) if tier == FOLDER else tier, found)
        if len(parts) < len(all_parts):
            line += ", training data only, because there is no room for more"
        self.rows, self.found = workload.rows, found
        seconds = sum(planner.epoch_seconds(timings, batches) for batches in parts)
        self._say(f"{line}; {'an epoch' if parts[0].shuffle else 'evaluation'} then takes about {seconds:.2g} s")
        return served

    def _with_room(self, prefix: Prefix, parts: list[Batches]) -> tuple[list[Batches], str] | Declined:
        """Choose the tier and the data to store: everything in the first tier with room, or else the first part."""
        if isinstance(self._where, Path):
            return parts, FOLDER
        device, tiers = parts[0].device, _TIERS[self._where]
        for chosen in (parts, parts[:1]):
            wanted = num_rows(chosen) * prefix.bytes_per_sample
            tier = self._world.agreed(planner.choose_tier(wanted, device, tiers))
            if tier is not None:
                return chosen, tier
        rows = num_rows(parts)
        return planner.no_room(rows * prefix.bytes_per_sample, rows, device, tiers[-1])

    def _opened(self, model: nn.Module, prefix: Prefix, parts: list[Batches], tier: str) -> Store | Declined:
        rows, device = num_rows(parts), parts[0].device
        pinned = has_own_memory(device)
        if self._world.size > 1:
            return SharedStore(prefix.specs, rows, self._world, on_disk=tier == DISK, pinned=pinned)
        if tier in (DEVICE, MEMORY):
            at = device if tier == DEVICE else "cpu"
            return MemoryStore(prefix.specs, rows, device=at, pinned=pinned and tier == MEMORY)
        if tier == DISK:
            return DiskStore(None, prefix.specs, rows, pinned=pinned)
        named = self._named(model, prefix, parts)
        return named if isinstance(named, Declined) else DiskStore(self._where, prefix.specs, *named, pinned=pinned)

    def _named(self, model: nn.Module, prefix: Prefix, parts: list[Batches]) -> tuple[np.ndarray, str] | Declined:
        """Return the key of each input and the prefix's fingerprint, by which other runs find activations."""
        preprocessing = parts[0].preprocessing  # the same for all parts, because it is the model's
        if type(preprocessing) not in _OWN_PREPROCESSING:
            return Declined("a custom preprocessing class cannot be identified by content")
        layout = [list(parameter.stride()) for parameter in model.parameters()]  # kernels round by it
        described = {"preprocessing": preprocessing and preprocessing.to_dict(), "layout": layout}
        name = fingerprint(prefix, described)
        keys = [keys_of_views(batches) for batches in parts]
        known = [key for key in keys if key is not None]
        if name is None or len(known) < len(keys):
            return Declined("the data or a frozen layer cannot be identified by content, so no other run could find it")
        return np.concatenate(known), name

    def _measured(
        self, model: nn.Module, prefix: Prefix, cached: CachedBatches, store: Store, batch: Any, timings: Timings
    ) -> Timings:
        """Time the first batch, and store its activations.

        Raises:
            StoreError: If the activations cannot be stored.
            DivergedError: If the model takes a different path on a whole batch.
        """
        indices, seconds = cached.rows(0)[0], 0.0
        if not len(indices):  # a process without samples measures nothing
            return timings
        if not store.has(indices):
            inputs = split_batch(batch)[0]
            seconds, activations = timed(lambda: prefix.compute(inputs), repeats=1)
            if not prefix.agrees(inputs, activations):
                raise DivergedError(POSITION_MATTERS)
            store.put(indices, activations)
        if not store.has(indices):  # another run is filling the store
            return replace(timings, prefix=seconds)
        cached.remember(batch, cached.indices(0)[0])
        replay, backward = time_replay(model, cached)
        forward = min(timings.forward, seconds + replay) if seconds else timings.forward  # now of a whole batch
        return replace(timings, forward=forward, prefix=seconds, replay=replay, backward=backward)


def describe_views(batches: Batches, given: Batches) -> str:
    """Describe for the user how fixed views approximate fresh augmentation; `""` if there is nothing to describe.

    Args:
        batches: Batches to train on.
        given: The batches that `fit` was given.
    """
    if batches.views is None or batches.views == 1:
        return ""
    if batches is given:
        return f"{batches.views} fixed views of each image in turn, approximating a new view in every epoch"
    return (
        f"{batches.views} fixed views of each image in turn, one of them as in evaluation, approximating new crops in "
        "every epoch, which cannot be cached; augment_views=0 draws new ones"
    )


def open_cache(
    cache: str | Path | bool,
    network: Network,
    autocast: Any,
    *,
    changed: bool,
    guarded: bool,
    world: World = ALONE,
) -> Cache | None:
    """Return the cache that the `cache` argument of `fit` requests, or None for no cache.

    Args:
        cache: `"auto"`, `"memory"`, `"disk"`, a folder or False.
        network: The model.
        autocast: Function that returns the context of the forward pass.
        changed: Whether a callback changes the inputs of training batches.
        guarded: Whether custom steps or callbacks may change the model or a batch.
        world: Processes that train together.

    Raises:
        ArgumentError: If `cache` is neither a kind of cache nor an existing or new folder.
    """
    where = _place(cache)
    if where is None:
        return None
    declined = _not_to_be_cut(network)
    if world.shards:
        declined = declined or Declined("distributed='fsdp' puts the weights together for whole forward passes only")
    if world.size > 1 and isinstance(where, Path):
        declined = declined or Declined("a folder serves one process; cache='memory' or 'disk' serves several")
    return Cache(where, network.stages, autocast, changed=changed, declined=declined, guarded=guarded, world=world)


def _not_to_be_cut(network: Network) -> Declined | None:
    """Return the reason that the forward pass cannot be split, or None."""
    if network.wrapped is not network.module:
        wrapper = type(network.wrapped).__name__
        return Declined(f"the model is wrapped in {wrapper}, which may compile or divide its forward pass")
    if is_compiled(network.module):
        return Declined(
            "the model is already compiled; FineTuner(model, compile=True) compiles only the parts that are needed"
        )
    return None


def _place(cache: str | Path | bool) -> str | Path | None:
    kinds = ("auto", "memory", "disk")
    expected = f"Expected cache to be 'auto', 'memory', 'disk', a folder or False, but got {cache!r}."
    if cache is False or cache in kinds:
        return None if cache is False else cache
    if not isinstance(cache, (str, os.PathLike)) or not str(cache):
        raise ArgumentError(expected)
    folder = local_path(cache)
    meant = nearest(str(cache), kinds) if isinstance(cache, str) and not os.path.exists(folder) else ""
    around = next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))
    if meant or not os.path.isdir(around):
        raise ArgumentError(f"{expected}{meant or f' {str(around)!r} is not a folder.'}")
    return folder
