"""`Pipeline`: open the user's data, audit it and load batches on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finetune.data.audit import audit, some_targets
from finetune.data.batch import split_batch
from finetune.data.loading.batches import Batches
from finetune.data.prepare import Prepared, prepare
from finetune.data.preprocessing.augmentations import Augmentation, chosen_augmentation
from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.sources.base import Source
from finetune.data.sources.labels import Meaning
from finetune.data.sources.open_source import open_source
from finetune.data.targets import TargetRule
from finetune.errors import DataError
from finetune.nested import map_tensors


@dataclass(frozen=True)
class Pipeline:
    """Settings that determine how the user's data becomes batches.

    Attributes:
        preprocessing: Preprocessing of raw items; None if the data is already model input.
        seed: Seed for splits, order and augmentation.
        device: Device of the batches.

    Example:
        >>> pipeline = Pipeline(seed=1)
        >>> source = pipeline.open((torch.zeros(5, 3), torch.arange(5)))
        >>> [len(inputs) for inputs, _ in pipeline.batches(source, 2).epoch(0)]
        [2, 2, 1]
    """

    preprocessing: InputPreprocessing | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def takes(self) -> str | None:
        """Kind of raw item that the preprocessing takes."""
        return None if self.preprocessing is None else self.preprocessing.kind

    def open(self, data: Any, meaning: Meaning | None = None, *, labeled: bool = True) -> Source:
        """Open data in any form that the package accepts. See `open_source`."""
        return open_source(data, meaning=meaning, labeled=labeled, takes=self.takes)

    def open_training(
        self, train: Any, val: Any, meaning: Meaning | None = None, *, model_classes: Sequence[str] | None = None
    ) -> Prepared:
        """Open training and validation data. See `prepare`."""
        return prepare(train, val, meaning=meaning, model_classes=model_classes, seed=self.seed, takes=self.takes)

    def example(self, source: Source) -> Any:
        """Return the inputs of two samples, ready for the model, or None if they cannot be read."""
        few = source.subset(range(min(2, len(source)))) if source.indexed else source
        try:
            batch = next(iter(self.batches(few, 2).epoch(0)), None)
        except DataError:  # the audit reports it together with all other errors of its kind
            return None
        return map_tensors(lambda tensor: tensor[:2], split_batch(batch)[0], None)

    def some_targets(self, source: Source) -> Tensor | None:
        """Return the targets that are known or can be read before training. See `audit.some_targets`."""
        return some_targets(source, self.preprocessing)

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
    ) -> tuple[Batches, Batches | None]:
        """Audit training and validation data and return their batches. See `audited` and `batches` for the arguments.

        Raises:
            DataError: If a sample cannot be used.
        """
        data = data.audited(rule=rule, preprocessing=self.preprocessing, skip_corrupt=skip_corrupt)
        loading: dict[str, Any] = {"keep": keep, "rule": rule}
        return (
            self.batches(data.train, batch_size, shuffle=True, augment=augment, views=views, **loading),
            None if data.val is None else self.batches(data.val, batch_size, **loading),
        )
