"""`Inspected`: all samples of the training and validation data with their features and facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from finetune.advice.features import Features
from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.sources.base import Source
from finetune.data.targets import are_class_indices
from finetune.data_check.samples.facts import Facts
from finetune.data_check.samples.places import Places


@dataclass(frozen=True, eq=False)
class Inspected:
    """The samples of one or two parts of the data, numbered as in `places`.

    Attributes:
        features: Input of the head, float32 [N, D].
        targets: Targets [N, ...].
        facts: Facts of the raw items, each [N, ...].
        places: Where each sample is.
        preprocessing: Preprocessing that decides whether a raw item can be used, or None.
    """

    features: Tensor
    targets: Tensor
    facts: Facts
    places: Places
    preprocessing: InputPreprocessing | None = None

    @classmethod
    def of(
        cls, features: Sequence[Features], sources: Sequence[Source], preprocessing: InputPreprocessing | None = None
    ) -> Inspected:
        """Join the features of each part of the data, with facts, and the parts."""
        return cls(
            torch.cat([each.last for each in features]),
            torch.cat([each.targets for each in features]),
            {name: torch.cat([each.facts[name] for each in features]) for name in features[0].facts},
            Places(tuple(sources)),
            preprocessing,
        )

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def parts(self) -> Tensor:
        """Number of the part of each sample, int64 [N]: 0 for training and 1 for validation."""
        return self.places.parts()

    @cached_property
    def readable(self) -> Tensor:
        """Whether a sample could be read and its values are finite, bool [N]."""
        return self.facts["readable"] & self.facts["finite"]

    @cached_property
    def labeled(self) -> Tensor:
        """Whether the values of a target are finite, bool [N]."""
        return self.targets.isfinite().reshape(len(self), -1).all(1)

    @cached_property
    def usable(self) -> Tensor:
        """Numbers of the readable samples with finite features, int64 [M]."""
        return (self.readable & self.features.isfinite().all(1)).nonzero().flatten()

    @cached_property
    def labels(self) -> Tensor | None:
        """Class indices int64 [N], below 0 for a sample without a class; None if the targets are others."""
        return self.targets.flatten().long() if are_class_indices(self.targets) else None

    @property
    def shows_pictures(self) -> bool:
        """Whether the samples are pictures."""
        return "tile" in self.facts

    @property
    def kind(self) -> str | None:
        """Kind of raw item."""
        return self.places.sources[0].kind
