"""`Pipeline`: open the user's data, audit it and load batches on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from finetune.data.audit import audit
from finetune.data.batch import split_batch
from finetune.data.loading.batches import Batches
from finetune.data.prepare import Prepared, prepare
from finetune.data.preprocessing.augmentations import Augmentation, chosen_augmentation
from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.sources.base import Source
from finetune.data.sources.open_source import open_source
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

    def open(self, data: Any, *, classes: Sequence[str] | None = None, labeled: bool = True) -> Source:
        """Open data in any form that the package accepts. See `open_source`."""
        return open_source(data, classes=classes, labeled=labeled, takes=self.takes)

    def open_training(
        self, train: Any, val: Any, *, classes: Sequence[str] | None = None, from_data: bool = False
    ) -> Prepared:
        """Open training and validation data.

        Args:
            train: Training data.
            val: Validation data, a fraction of `train`, False for none, or None for the default for this form of data.
            classes: Class names that are already known.
            from_data: Whether `classes` come from earlier training data, so that any other class is an error.
                Classes of pretrained weights only set the order, if the data has no others.

        Raises:
            DataError: If the data cannot be opened, or holds an unknown class.
        """
        return prepare(
            train,
            val,
            classes=classes if from_data else None,
            model_classes=None if from_data else classes,
            seed=self.seed,
            takes=self.takes,
        )

    def example(self, source: Source) -> Any:
        """Return the inputs of two samples, ready for the model, or None if they cannot be read."""
        few = source.subset(range(min(2, len(source)))) if source.indexed else source
        try:
            batch = next(iter(self.batches(few, 2).epoch(0)), None)
        except DataError:  # the audit reports it together with all other errors of its kind
            return None
        return map_tensors(lambda tensor: tensor[:2], split_batch(batch)[0], None)

    def audited(
        self, source: Source, role: str, *, num_classes: int | None = None, skip_corrupt: bool = False
    ) -> Source:
        """Check data and return it, without corrupt files if `skip_corrupt`.

        Args:
            source: The data.
            role: Name of the data in messages, such as `"training"`.
            num_classes: Number of outputs of the model, or None if targets are not class indices.
            skip_corrupt: Whether to leave out files that cannot be decoded.

        Raises:
            DataError: If a sample cannot be used.
        """
        return audit(
            source, num_classes=num_classes, role=role, skip_corrupt=skip_corrupt, preprocessing=self.preprocessing
        )

    def batches(
        self,
        source: Source,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool | str | Augmentation = False,
        views: int | None = None,
        keep: bool = False,
        num_classes: int | None = None,
    ) -> Batches:
        """Return the batches of a source.

        Args:
            source: The data.
            batch_size: Samples per batch.
            shuffle: Whether to draw a new order every epoch.
            augment: Augmentation of images, as in `fit`.
            views: Number of fixed augmented versions per image; None for the default of the augmentation.
            keep: Whether decoded images may stay in memory for the next epoch.
            num_classes: Number of classes, to check labels that cannot be audited beforehand.
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
            num_classes=num_classes,
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
        num_classes: int | None = None,
        skip_corrupt: bool = False,
    ) -> tuple[Batches, Batches | None]:
        """Audit training and validation data and return their batches. See `audited` and `batches` for the arguments.

        Raises:
            DataError: If a sample cannot be used.
        """
        data = data.audited(num_classes=num_classes, preprocessing=self.preprocessing, skip_corrupt=skip_corrupt)
        loading: dict[str, Any] = {"keep": keep, "num_classes": num_classes}
        return (
            self.batches(data.train, batch_size, shuffle=True, augment=augment, views=views, **loading),
            None if data.val is None else self.batches(data.val, batch_size, **loading),
        )
