"""From what the user passes to `fit` to sources that are checked, and a word on what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.data.randomness import seeded
from finetune.data.sources.base import Source
from finetune.data.sources.folders import find_split
from finetune.data.sources.open_source import open_source
from finetune.data.splitting import split

# Without a validation set of its own, this share of a folder or table is set aside.
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Prepared:
    """Training and validation data, and the notes that the user should read."""

    train: Source
    val: Source | None
    notes: tuple[str, ...]


def open_training(train: Any, val: Any, classes: Sequence[str] | None, seed: int, takes: str | None = None) -> Prepared:
    """Open training and validation data; the training classes rule.

    `val` is data like `train`, a share between 0 and 1 to set aside, False for none, or None: then
    files and tables are split, and nothing else is. `takes` is the kind of raw item that the
    preprocessing takes.

    Raises:
        DataError: either cannot be opened, or validation data has a class that training data has not.
    """
    if val is None and isinstance(train, (str, Path)) and Path(train).is_dir():
        found = find_split(Path(train))
        train, val = found or (train, val)
    source = open_source(train, classes=classes, takes=takes)
    if val is False or (val is None and not source.splits):
        return Prepared(source, None, ())
    if val is None or isinstance(val, float):
        share = VALIDATION_SHARE if val is None else val
        part, held_out = split(source, share, seed)
        note = (
            f"No validation data was given: {len(held_out)} of {len(source)} samples were set aside for it, "
            f"stratified by class, with seed {seed}. Pass val=False to train on all."
        )
        return Prepared(part, held_out, (note,))
    return Prepared(source, open_source(val, classes=source.classes, takes=takes), ())


def some_targets(source: Source, count: int = 64) -> Tensor | None:
    """Return the targets, or those of the first samples where they are not known; None if there are none."""
    if source.targets is not None:
        return source.targets
    with seeded("targets"):
        return source.first_targets(count)
