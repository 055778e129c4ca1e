"""A run's cache of frozen prefixes: cut anew in each phase, with one line that says what came of it."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from finetune.data.base import split_batch
from finetune.data.batches import Batches
from finetune.features.cached import CachedBatches, same_each_epoch
from finetune.features.planner import plan
from finetune.features.prefix import Prefix, cut_prefix
from finetune.features.store import MemoryStore, Store, StoreError

log = logging.getLogger("finetune")

class Cache:
    """What is stored of the prefix of the present phase.

    Args:
        asked: the user asked for it, so that it is not weighed whether it pays.
        handed_on: the steps are the library's, which only hand their inputs on to the model.
        changed: a callback changes the inputs of each training batch before the step.
        autocast: makes the context of the forward pass.
    """

    def __init__(self, *, asked: bool, handed_on: bool, changed: bool = False, autocast: Any) -> None:
        self._asked, self._handed_on, self._changed, self._autocast = asked, handed_on, changed, autocast
        self._plain: tuple[Batches, Batches | None] | None = None
        self._stores: list[Store] = []

    def cut(self, model: nn.Module, train: Any, val: Any, epochs: int) -> tuple[Any, Any]:
        """Return the batches for a phase of so many epochs, served from the prefix at the present freeze state."""
        self._plain = plain_train, plain_val = self._plain or (train, val)
        for store in self._stores:
            store.close()
        self._stores = []
        reason = "a callback changes the inputs" if self._changed else same_each_epoch(plain_train)
        cacheable = [] if reason else [plain_train]
        cacheable += [plain_val] if plain_val and not same_each_epoch(plain_val) else []
        if not cacheable:
            log.info("cache: none, as %s", reason)
            return self._plain
        prefix = self._prefix(model, cacheable[0])
        if isinstance(prefix, str):
            log.info("cache: none, as %s", prefix)
            return self._plain
        if reason:
            log.info("cache: validation data only, as %s", reason)
        served = [self._served(batches, prefix, epochs) if batches in cacheable else batches for batches in self._plain]
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
        decided = plan(prefix, len(batches.source), epochs, batches.device, asked=self._asked)
        log.info(decided.line)
        if not decided.stores:
            return batches
        try:
            store = MemoryStore(prefix.specs, len(batches.source), device=batches.device)
        except StoreError as error:
            log.info("cache: none, as %s", error)
            return batches
        self._stores.append(store)
        return CachedBatches(batches, prefix, store, handed_on=self._handed_on)
