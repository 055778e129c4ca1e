"""`Iterated`: data that is read from its start, in passes whose first values can be looked at beforehand."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from finetune.data.randomness import preserved, reseed, seeded
from finetune.data.sources.base import Source
from finetune.data.sources.labels import Classes
from finetune.data.sources.streams.division import check_division, own_seed
from finetune.distributed.world import ALONE, World
from finetune.signals.stops import heed_parent_only

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("finetune")


class Reading:
    """One pass over an iterable, whose first values can be looked at before it begins.

    The first values come from the iterator of the pass itself, because a second `iter` of a file reader, for example,
    continues where the first one stopped. Each value has a seed of its own, so a look at it changes no later value.

    Args:
        iterable: The iterable.
        key: Key of the random draws.
        epoch: Epoch of the pass, the last part of the key.
    """

    def __init__(self, iterable: Iterable[Any], *key: int | str, epoch: int) -> None:
        self.epoch = epoch
        self.begun = False
        self._key = (*key, epoch)
        self._first: list[Any] = []
        with seeded(*self._key):
            self._rest = _begun(iterable)

    def first(self, number: int) -> list[Any]:
        """Return the first values. Once the pass has begun, these are the ones already read."""
        missing = number - len(self._first)
        if missing > 0 and not self.begun:
            with preserved():
                self._first.extend(islice(self._drawn(len(self._first)), missing))
        return self._first[:number]

    def end(self) -> None:
        """End the pass before it begins, and with it its worker processes. Its first values can still be looked at."""
        self.begun, self._rest = True, iter(())

    def __iter__(self) -> Iterator[Any]:
        """Begin the pass. Call it once, inside `preserved`."""
        self.begun = True
        yield from self._first
        yield from self._drawn(len(self._first))

    def _drawn(self, start: int) -> Iterator[Any]:
        for position in count(start):
            reseed(*self._key, position)
            try:
                value = next(self._rest)
            except StopIteration:
                return
            yield value


def _begun(iterable: Any) -> Iterator[Any]:
    """Return an iterator, whose worker processes leave signals to this one if it is that of a DataLoader."""
    if not isinstance(iterable, DataLoader) or not iterable.num_workers:
        return iter(iterable)
    own = iterable.worker_init_fn
    iterable.worker_init_fn = partial(heed_parent_only, then=own)
    try:
        return iter(iterable)
    finally:
        iterable.worker_init_fn = own


class Iterated(Source):
    """Data that is read from its start, such as an iterable dataset.

    Args:
        iterable: What is read in each pass.
        classes: Class names by index, or None.
        seed: Seed of the random draws.
        epoch: Epoch of the first pass.
    """

    indexed = False

    def __init__(self, iterable: Any, classes: Classes | None, seed: int, epoch: int) -> None:
        self.iterable = iterable
        self.classes = classes
        self.seed = seed
        self.epoch = epoch
        self._looked: Reading | None = None
        self._compared = self._length_said = False
        self._unchecked = ALONE  # processes that have not yet compared what they read
        self._whole: Iterated | None = None  # the data that this is a part of

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def first(self, number: int) -> list[Any]:
        """Return the first values of the next pass, without using them up."""
        if self._looked is None:
            self._looked = self._opened()
        return self._looked.first(number)

    def _compared_in(self, world: World) -> Self:
        """Return the same data, which compares its start with that of the other processes before its first pass."""
        own = copy.copy(self)
        own._unchecked = world
        return own

    def _split(self, iterable: Any, world: World) -> Self:
        """Make this the part of a process. The processes compare the start of the whole."""
        self._whole = copy.copy(self)
        self.iterable, self.seed, self.divided = iterable, own_seed(self.seed, world), True
        self._looked = None
        return self

    def _check_division(self) -> None:
        if self._unchecked.size > 1:
            check_division(self if self._whole is None else self._whole, self._unchecked)
            self._unchecked = ALONE
        if self._whole is not None:
            self._whole.release()

    def release(self) -> None:
        """End the pass that was begun to look at its first values, because another object reads them."""
        if self._looked is not None and not self._looked.begun:
            self._looked.end()

    def _pass(self, limit: int | None) -> Iterator[Any]:
        """Yield the values of a pass, at most `limit`, the stated length. Warn once if the true length differs."""
        self._check_division()
        looked, begun = self._looked, False
        if looked is not None and not looked.begun and looked.epoch == self.epoch:
            reading, begun = looked, True
        values = iter(reading if begun else self._opened())
        number = 0
        for value in islice(values, limit):
            number += 1
            yield value
        if limit is not None and not self._compared:
            self._compared = True
            with warnings.catch_warnings():  # torch's own words for the same
                warnings.simplefilter("ignore", UserWarning)
                more = next(values, None) is not None
            self._compare(number, limit, more=more)

    def _opened(self) -> Reading:
        set_epoch_of(self._shuffled, self.epoch)
        return Reading(self.iterable, self.seed, "loader", epoch=self.epoch)

    def _compare(self, number: int, length: int, *, more: bool) -> None:
        if not more and number in (0, length):
            return
        self._say_length("batches" if self.batched else "samples", length, number, more=more)

    def _say_length(self, unit: str, length: int, number: int, *, more: bool = False) -> None:
        if self._length_said:
            return
        self._length_said = True
        gave = "gives more; a pass ends there" if more else f"gave {number}"
        log.warning(
            "%s has the length of %d %s, but %s. Correct __len__, which the schedule of learning rates follows.",
            type(self.iterable).__name__,
            length,
            unit,
            gave,
        )

    @property
    def _shuffled(self) -> Any:
        """The object whose `set_epoch` decides the order."""
        return self.iterable


def length_of(sized: Any) -> int | None:
    """Return `len(sized)`, or None for an iterable dataset, or a loader of one, without a length."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def set_epoch_of(shuffled: Any, epoch: int) -> None:
    """Set the epoch of a distributed sampler or a Hugging Face stream, as their own training loops do."""
    if callable(getattr(shuffled, "set_epoch", None)):
        shuffled.set_epoch(epoch)
