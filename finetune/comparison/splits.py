"""Training and validation data of a comparison, opened and checked before the first run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.comparison.fingerprint import fingerprint_data
from finetune.data.prepare import VALIDATION_SHARE, Prepared, prepare
from finetune.data.preprocessing.base import SOUND, TEXT
from finetune.data.sources.base import num_outputs_for
from finetune.display.progress.waits import busy
from finetune.errors import ArgumentError, DataError, is_number, number


@dataclass(frozen=True)
class Split:
    """Training and validation data of the runs with one seed.

    Attributes:
        train: Training data as accepted by `fit`.
        val: Validation data as accepted by `fit`. A fraction is drawn with the seed of the run.
        num_outputs: Number of outputs that the targets require, or None if they do not determine it.
        classes: Class names, or None.
        fingerprint: JSON value that identifies the data, or None if it was not requested.
    """

    train: Any
    val: Any
    num_outputs: int | None
    classes: Sequence[str] | None
    fingerprint: Any


def splits_by_seed(data: Any, val: Any, seeds: Iterable[int], *, fingerprinted: bool) -> dict[int, Split]:
    """Return the split for each seed. All seeds share one unless `data` is a function of the seed.

    Args:
        fingerprinted: Whether to read all data for a fingerprint.

    Raises:
        ArgumentError: If there is no validation data, or a function of the seed does not return a pair.
        DataError: If the data cannot be used.
    """
    if not callable(data):
        return dict.fromkeys(seeds, _split(data, val, fingerprinted))
    if val is not None:
        raise ArgumentError("data is a function that returns a pair (train, val) for each seed, so omit val.")
    drawn = {seed: data(seed) for seed in seeds}
    for pair in drawn.values():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ArgumentError(f"Expected data(seed) to return a pair (train, val), but got {pair!r}.")
    return {seed: _split(train, held_out, fingerprinted) for seed, (train, held_out) in drawn.items()}


def _split(train: Any, val: Any, fingerprinted: bool) -> Split:
    opened = _opened(train, val)
    if val is None and opened.val is None:
        val = VALIDATION_SHARE
        opened = _opened(train, val)
    if opened.val is None:
        raise ArgumentError("A comparison requires validation data. Pass val, or omit it to hold out a fifth.")
    fraction = number("val", val) if is_number(val) else None
    with busy("Identifying the data"):
        parts = [fingerprint_data(source) for source in (opened.train, opened.val)] if fingerprinted else None
    return Split(train, val, num_outputs_for(opened.train), opened.train.classes, [fraction, parts])


def _opened(train: Any, val: Any) -> Prepared:
    """Open the data as images, text or audio, because the input type of the models is not known yet."""
    errors = []
    for takes in (None, TEXT, SOUND):
        try:
            return prepare(train, val, takes=takes)
        except DataError as error:
            errors.append(error)
    raise errors[0]
