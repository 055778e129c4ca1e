"""Prepare training and validation data from the arguments of `fit`: open, split and check them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from finetune.data.audit import audit, check_not_empty
from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.sources.base import Source
from finetune.data.sources.folders import find_split
from finetune.data.sources.labels import Meaning
from finetune.data.sources.open_source import open_source
from finetune.data.splitting import marked, mixed, split
from finetune.data.targets import TargetRule
from finetune.distributed.world import ALONE, World
from finetune.errors import is_number
from finetune.naming.paths import exists
from finetune.signals.stops import interruptible

# Fraction of a folder or table to hold out if no validation data is given.
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Prepared:
    """Training and validation data.

    Attributes:
        train: Training data.
        val: Validation data, or None.
        notes: Sentences for the user, such as the number of samples held out.
    """

    train: Source
    val: Source | None = None
    notes: tuple[str, ...] = ()

    def audited(
        self,
        *,
        rule: TargetRule | None = None,
        preprocessing: InputPreprocessing | None = None,
        skip_corrupt: bool = False,
    ) -> Prepared:
        """Check both parts and return them, without damaged files if `skip_corrupt`. See `audit`.

        Args:
            rule: Targets that the task accepts, or None to check no targets.
            preprocessing: Preprocessing of the raw items.
            skip_corrupt: Whether to leave out files that cannot be decoded, with a warning.

        Raises:
            DataError: If the data would stop or spoil a run.
        """

        def checked(source: Source, role: str) -> Source:
            return audit(source, role=role, rule=rule, preprocessing=preprocessing, skip_corrupt=skip_corrupt)

        train = checked(self.train, "training")
        return replace(self, train=train, val=None if self.val is None else checked(self.val, "validation"))


@interruptible()
def prepare(
    train: Any,
    val: Any = None,
    *,
    meaning: Meaning | None = None,
    model_classes: Sequence[str] | None = None,
    seed: int = 0,
    takes: str | None = None,
    double: bool = False,
    epoch: int = 0,
    holds_out: bool = True,
    world: World = ALONE,
) -> Prepared:
    """Open and split training and validation data. `Prepared.audited` checks it.

    Args:
        train: Training data, in any form that `open_source` accepts.
        val: Validation data in the same forms, a fraction between 0 and 1 to hold out, False for none, or None to
            hold out a fifth of files and tables and nothing of other data.
        meaning: Meaning of the labels, with the classes of earlier training data. None derives both from `train`.
        model_classes: Classes that the model was trained on. Data with a subset of them keeps their order.
        seed: Seed of the split.
        takes: Kind of raw item that the preprocessing takes.
        double: Whether float64 arrays stay as they are, because the model computes in float64.
        epoch: Epoch of the first pass over `train`.
        holds_out: Whether None holds out a fifth. Otherwise, it uses only validation data that the data sets apart.
        world: Processes that read the data together.

    Raises:
        DataError: If data cannot be opened or is empty, or validation data has a class that training data lacks.
        ArgumentError: If `val` is a number that is not between 0 and 1.

    Example:
        >>> data = prepare("dogs/train", 0.25, seed=1).audited()
        >>> len(data.train), len(data.val), data.train.classes
        (9, 3, ('beagle', 'husky', 'pug'))
    """
    notes: tuple[str, ...] = ()
    if val is None and isinstance(train, (str, os.PathLike)) and exists(train) and (found := find_split(train)):
        train, val = found
        notes = (f"Training on '{train}' and validating on '{val}'.",)
    meaning = meaning or Meaning()
    opened = partial(open_source, takes=takes, double=double, seed=seed, world=world)
    source = opened(train, meaning=meaning, epoch=epoch)
    check_not_empty(source, "training")
    notes = (*notes, *source.notes)
    if meaning.classes is None and model_classes and source.classes:
        known = tuple(model_classes)
        if source.classes != known and {*source.classes} <= {*known}:
            if val is not None and val is not False and not is_number(val):
                in_data = replace(meaning, classes=source.classes)
                opened(val, meaning=in_data)  # a class that training lacks is an error
            source = opened(train, meaning=replace(meaning, classes=known), epoch=epoch)
    if source.marks is not None and (source.marks > 0).any():
        source, own, note = marked(source)
        if val is None and own is not None:
            return Prepared(source, own, (*notes, note))
        notes = (*notes, note)
    if val is False or (val is None and not (holds_out and source.splits)):
        return Prepared(source, notes=notes)
    if val is None or is_number(val):
        return _split(source, VALIDATION_SHARE if val is None else val, seed, notes)
    meaning = _as_in_training(source, meaning, model_classes)
    validation = opened(val, meaning=meaning)
    check_not_empty(validation, "validation")
    notes = (*notes, *(f"Validation data: {note}" for note in validation.notes))
    if (whole := mixed(validation)) is not None:
        notes = (*notes, f"Validation data: {whole}")
    shared = validation.shared_with(source)
    if shared is not None:
        notes = (*notes, f"Validating on training data: {shared}.")
    return Prepared(source, validation, notes)


def _as_in_training(source: Source, meaning: Meaning, model_classes: Sequence[str] | None) -> Meaning:
    """Return the meaning of validation labels, which is that of the training labels in `source`."""
    classes = source.classes if source.classes is not None else model_classes
    if classes is None:
        return Meaning(numbers=True, names=False)
    several = meaning.several or _has_several(source.targets, len(classes))
    if source.classes is not None:
        return replace(meaning, classes=source.classes, several=several)
    return Meaning(tuple(classes), numbers=True, several=several)


def _has_several(targets: Tensor | None, classes: int) -> bool:
    """Return whether targets are a 0 or 1 per class."""
    if targets is None or targets.dim() != 2 or targets.shape[1] != classes:
        return False
    return bool(((targets == 0) | (targets == 1)).all())


def _split(source: Source, share: float, seed: int, notes: tuple[str, ...]) -> Prepared:
    train, val = split(source, share, seed)
    note = (
        f"No validation data was given: {len(val)} of {len(source)} samples were held out, "
        f"stratified by class, with seed {seed}. Pass val=False to train on all samples."
    )
    return Prepared(train, val, (*notes, note))
