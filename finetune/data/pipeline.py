"""`Pipeline`: open the user's data, audit it and load batches on the device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from finetune.data.audit import audit, check_not_empty, some_targets
from finetune.data.batch import check_pair, first_samples, num_samples_of, split_batch
from finetune.data.loading.batches import Batches
from finetune.data.prepare import Prepared, prepare
from finetune.data.preprocessing.augmentations import Augmentation, chosen_augmentation
from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.sources.base import Source
from finetune.data.sources.labels import Meaning
from finetune.data.sources.open_source import open_source
from finetune.data.targets import TargetRule
from finetune.distributed.world import ALONE, World
from finetune.errors import DataError
from finetune.signals.stops import interruptible

log = logging.getLogger("finetune")


@dataclass(frozen=True)
class Pipeline:
    """Settings that determine how the user's data becomes batches.

    Attributes:
        preprocessing: Preprocessing of raw items; None if the data is already model input.
        seed: Seed for splits, order and augmentation.
        device: Device of the batches.
        double: Whether float64 arrays stay as they are, because the model computes in float64.
        join_single: Whether a last batch of one sample joins the one before, because the model needs several.
        world: Processes that read the data together.

    Example:
        >>> pipeline = Pipeline(seed=1)
        >>> source = pipeline.open((torch.zeros(5, 3), torch.arange(5)))
        >>> [len(inputs) for inputs, _ in pipeline.batches(source, 2).epoch(0)]
        [2, 2, 1]
    """

    preprocessing: InputPreprocessing | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    double: bool = False
    join_single: bool = False
    world: World = ALONE

    @property
    def takes(self) -> str | None:
        """Kind of raw item that the preprocessing takes."""
        return None if self.preprocessing is None else self.preprocessing.kind

    @interruptible()
    def open(self, data: Any, meaning: Meaning | None = None, *, labeled: bool = True) -> Source:
        """Open data in any form that the package accepts. See `open_source`.

        Raises:
            DataError: If it cannot be opened, or is empty.
        """
        options: dict[str, Any] = {"takes": self.takes, "double": self.double, "seed": self.seed}
        options["world"] = self.world
        source = open_source(data, meaning=meaning, labeled=labeled, **options)
        check_not_empty(source, "evaluation" if labeled else "prediction")
        return source

    def open_training(
        self,
        train: Any,
        val: Any,
        meaning: Meaning | None = None,
        *,
        model_classes: Sequence[str] | None = None,
        epoch: int = 0,
        holds_out: bool = True,
    ) -> Prepared:
        """Open training and validation data. See `prepare`."""
        return prepare(
            train,
            val,
            meaning=meaning,
            model_classes=model_classes,
            seed=self.seed,
            takes=self.takes,
            double=self.double,
            epoch=epoch,
            holds_out=holds_out,
            world=self.world,
        )

    def example(self, source: Source) -> Any:
        """Return the inputs of two samples, ready for the model, or None if they cannot be read.

        If the rows of a loader's first batch are not samples, return its inputs as they are.
        """
        try:
            batch = self._first_batch(source)
            return None if batch is None else first_samples(split_batch(batch)[0], num_samples_of(batch), 2)
        except DataError:  # the audit reports it together with all other errors of its kind
            return None

    def check_pairs(self, source: Source, *, say: bool = True) -> bool:
        """Check that the second part of a sample may be its target, and return whether other parts are not used.

        Args:
            source: The data.
            say: Whether to log which parts are not used.

        Raises:
            DataError: If the second part is rather a mask or a second input.
        """
        if source.vectorized or source.kind is not None:
            return False
        return check_pair(self._first_batch(source), say=say)

    def _say_unprepared(self, source: Source, role: str) -> None:
        """Warn of inputs that count as ready for the model, but were rather not prepared as images are."""
        if source.kind is not None or self.preprocessing is None:
            return
        try:
            batch = replace(self, preprocessing=None)._first_batch(source)
        except DataError:  # the audit reports it
            return
        if self.preprocessing.is_unprepared(split_batch(batch)[0]):
            log.warning(
                "The %s inputs are floats between 0 and 1, which are used as they are, while images are normalized by "
                "%s. To normalize these, too, do so in the dataset, or pass X as bytes: (255 * X).to(torch.uint8).",
                role,
                self.preprocessing,
            )

    def _first_batch(self, source: Source) -> Any:
        few = source.subset(range(min(2, len(source)))) if source.indexed else source
        return self.batches(few, 2).first()

    def some_targets(self, source: Source, role: str = "training") -> Tensor | None:
        """Return the targets that are known or can be read before training. See `audit.some_targets`."""
        return some_targets(source, self.preprocessing, role)

    def audited(
        self, source: Source, role: str, *, rule: TargetRule | None = None, skip_corrupt: bool = False
    ) -> Source:
        """Check data and return it, without corrupt files if `skip_corrupt`.

        Args:
            source: The data.
            role: Name of the data in messages, such as `"training"`.
            rule: Targets that the task accepts, or None to check no targets.
            skip_corrupt: Whether to leave out files that cannot be decoded.

        Raises:
            DataError: If a sample cannot be used.
        """
        self._say_unprepared(source, role)
        return audit(source, rule=rule, role=role, skip_corrupt=skip_corrupt, preprocessing=self.preprocessing)

    def batches(
        self,
        source: Source,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool | str | Augmentation = False,
        views: int | None = None,
        keep: bool = False,
        rule: TargetRule | None = None,
        world: World = ALONE,
        ordered: bool = False,
    ) -> Batches:
        """Return the batches of a source.

        Args:
            source: The data.
            batch_size: Samples per batch.
            shuffle: Whether to draw a new order every epoch.
            augment: Augmentation of images, as in `fit`.
            views: Number of fixed augmented versions per image; None for the default of the augmentation.
            keep: Whether decoded images may stay in memory for the next epoch.
            rule: Targets that the task accepts, to check each batch; None to check no targets.
            world: Processes that divide every batch.
            ordered: Whether the batches of all processes, one of each in turn, have to keep the order of the data.
        """
        chosen = chosen_augmentation(augment, self.preprocessing, source.kind, views=views)
        return Batches(
            source,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.seed,
            device=self.device,
            preprocessing=self.preprocessing,
            augment=chosen.augment,
            views=views,
            stand_ins=chosen.stand_ins,
            rule=rule,
            keep=keep,
            join_single=self.join_single,
            world=world,
            ordered=ordered,
        )

    def training_batches(
        self,
        data: Prepared,
        batch_size: int,
        *,
        augment: bool | str | Augmentation = True,
        views: int | None = None,
        keep: bool = False,
        rule: TargetRule | None = None,
        skip_corrupt: bool = False,
        world: World = ALONE,
    ) -> tuple[Batches, Batches | None]:
        """Audit training and validation data and return their batches. See `audited` and `batches` for the arguments.

        Raises:
            DataError: If a sample cannot be used.
        """
        self._say_unprepared(data.train, "training")
        if data.val is not None and data.val.indexed:  # the first batch of a stream belongs to a later pass
            self._say_unprepared(data.val, "validation")
        data = data.audited(rule=rule, preprocessing=self.preprocessing, skip_corrupt=skip_corrupt)
        loading: dict[str, Any] = {"keep": keep, "rule": rule, "world": world}
        return (
            self.batches(data.train, batch_size, shuffle=True, augment=augment, views=views, **loading),
            None if data.val is None else self.batches(data.val, batch_size, **loading),
        )
