"""A run's cache of frozen prefixes: cut anew in each phase, with one line that says what came of it."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from finetune.data.base import split_batch
from finetune.data.batches import Batches
from finetune.features.cached import CachedBatches, approximation, in_few_views, same_each_epoch
from finetune.features.planner import plan
from finetune.features.prefix import Prefix, cut_prefix
from finetune.features.store import MemoryStore, Store, StoreError

log = logging.getLogger("finetune")

class Cache:
    """What is stored of the prefix of the present phase.

    Args:
        asked: the user asked for it, so that it is not weighed whether it pays.
        handed_on: the steps are the library's, which only hand their inputs on to the model.
        autocast: makes the context of the forward pass.
    """

    def __init__(self, *, asked: bool, handed_on: bool, autocast: Any) -> None:
        self._asked, self._handed_on, self._autocast = asked, handed_on, autocast
        self._plain: tuple[Batches, Batches | None] | None = None
        self._stores: list[Store] = []

    def cut(
        self, model: nn.Module, train: Any, val: Any, epochs: int, in_views: bool | None = None
    ) -> tuple[Any, Any]:
        """Return the batches for a phase of so many epochs, served from the prefix at the present freeze state.

        Where the library chose the augmentation, stored views take its place if they are stored in this phase;
        `in_views` says whether they do, as they did before a run was resumed.
        """
        self._plain = plain = self._plain or (train, val)
        for store in self._stores:
            store.close()
        self._stores = []
        train, val = (in_few_views(plain[0], epochs) if in_views is None else plain[0].in_views(in_views)), plain[1]
        served_train, served_val = self._cut(model, train, val, epochs)
        if in_views is None and served_train is train:  # not stored, so there is nothing to be had for fewer pictures
            return plain[0], served_val
        if said := approximation(train, plain[0]):
            log.info("augmentation: %s", said)
        return served_train, served_val

    def _cut(self, model: nn.Module, train: Any, val: Any, epochs: int) -> tuple[Any, Any]:
        reason = same_each_epoch(train)
        cacheable = [batches for batches in (train, val) if batches is not None and not same_each_epoch(batches)]
        if not cacheable:
            log.info("cache: none, as %s", reason)
            return train, val
        prefix = self._prefix(model, cacheable[0])
        if isinstance(prefix, str):
            log.info("cache: none, as %s", prefix)
            return train, val
        if reason:
            log.info("cache: validation data only, as %s", reason)
        pair = train, val
        served = [self._served(batches, prefix, epochs) if batches in cacheable else batches for batches in pair]
        return served[0], served[1]

    def _prefix(self, model: nn.Module, batches: Batches) -> Prefix | str:
        batch = next(iter(batches.epoch(0)), None)
        if batch is None:
            return "there is no batch"
        with self._autocast():
            return cut_prefix(model, split_batch(batch)[0])

    def _served(self, batches: Batches | None, prefix: Prefix, epochs: int) -> Any:
        if batches is None:
            return None
        views = batches.views or 1
        decided = plan(prefix, len(batches.source), epochs, batches.device, asked=self._asked, views=views)
        log.info(decided.line)
        if not decided.stores:
            return batches
        try:
            store = MemoryStore(prefix.specs, views * len(batches.source), device=batches.device)
        except StoreError as error:
            log.info("cache: none, as %s", error)
            return batches
        self._stores.append(store)
        return CachedBatches(batches, prefix, store, handed_on=self._handed_on)
