"""`Places`: where each sample of the data is, when training and validation data are numbered together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.data.sources.base import Source
from finetune.interpret.pictures import text_of


@dataclass(frozen=True, eq=False)
class Places:
    """The samples of one or two parts of the data, numbered from the first of training to the last of validation.

    Attributes:
        sources: Training data and, if given, validation data.

    Example:
        >>> from finetune.data.sources.open_source import open_source
        >>> train, val = (open_source((torch.zeros(count, 2), torch.arange(count) % 2)) for count in (3, 2))
        >>> Places((train, val)).name(4)
        'sample 1'
    """

    sources: Sequence[Source]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def parts(self) -> Tensor:
        """Return the number of the part of each sample, int64 [N]: 0 for training and 1 for validation."""
        return torch.arange(len(self.sources)).repeat_interleave(torch.tensor(list(map(len, self.sources))))

    def place(self, sample: int) -> tuple[Source, int]:
        """Return the source of a sample, and its number there."""
        for source in self.sources:
            if sample < len(source):
                return source, sample
            sample -= len(source)
        raise IndexError(sample)

    def name(self, sample: int) -> str:
        """Return the name of a sample."""
        source, index = self.place(sample)
        return source.name(index)

    def text(self, sample: int) -> str | None:
        """Return the text of a sample, or None if it is none."""
        return text_of(*self.place(sample))

    def class_name(self, label: int) -> str:
        """Return the name of a class."""
        classes = self.sources[0].classes
        return classes[label] if classes is not None and 0 <= label < len(classes) else str(label)
