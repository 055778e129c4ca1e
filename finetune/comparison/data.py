"""The data that runs are compared on, opened before the first to see what is wrong with it for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.comparison.identity import described_data
from finetune.data.prepare import VALIDATION_SHARE, Prepared, open_training
from finetune.data.preprocessing.base import SOUND, TEXT
from finetune.data.sources.base import Source
from finetune.errors import ArgumentError, DataError


@dataclass(frozen=True)
class Subject:
    """Training and validation data.

    Attributes:
        train, val: as `fit` takes them; a share to set aside is drawn with the seed of the run.
        num_outputs: that the targets ask for, None where they do not tell.
        classes: the names of the classes, None where there are none.
        known: what the data is, in values of JSON; None where nobody asked.
    """

    train: Any
    val: Any
    num_outputs: int | None
    classes: Sequence[str] | None
    known: Any


def subjects(data: Any, val: Any, seeds: Iterable[int], *, known: bool) -> dict[int, Subject]:
    """Return the data by seed, the same for all unless `data` is a function of the seed.

    Args:
        known: whether to look at all that is in it, to recognise it later.

    Raises:
        ArgumentError, DataError: it cannot be used, or there is nothing for validation.
    """
    if not callable(data):
        return dict.fromkeys(seeds, _subject(data, val, known))
    if val is not None:
        raise ArgumentError("data is a function of the seed, which gives a pair (train, val); leave out val.")
    drawn = {seed: data(seed) for seed in seeds}
    for pair in drawn.values():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ArgumentError(f"Expected the function of the seed to give a pair (train, val), but it gave {pair!r}.")
    return {seed: _subject(train, held_out, known) for seed, (train, held_out) in drawn.items()}


def _subject(train: Any, val: Any, known: bool) -> Subject:
    opened = _opened(train, val)
    if val is None and opened.val is None:
        val = VALIDATION_SHARE
        opened = _opened(train, val)
    if opened.val is None:
        raise ArgumentError("There is nothing to compare by without validation data. Give val, or leave it out.")
    parts = [described_data(source) for source in (opened.train, opened.val)] if known else None
    share = val if isinstance(val, float) else None
    return Subject(train, val, _outputs(opened.train), opened.train.classes, [share, parts])


def _opened(train: Any, val: Any) -> Prepared:
    """Open the data, whichever kind of raw item it holds: which one the models take is not known yet."""
    wrong = []
    for takes in (None, TEXT, SOUND):
        try:
            return open_training(train, val, None, 0, takes)
        except DataError as error:
            wrong.append(error)
    raise wrong[0]


def _outputs(source: Source) -> int | None:
    if source.classes is not None:
        return len(source.classes)
    targets = source.targets
    if targets is None or not targets.numel():
        return None
    if targets.dim() > 1:
        return targets.shape[1]
    return 1 if targets.is_floating_point() else int(targets.max()) + 1
