"""What raw data is, and what every preprocessing does with it.

A source says which kind of raw item it holds, a preprocessing which kind it takes: a picture (PIL), a
text (a str or a `TextPair`), or a waveform (a 1-d array or a `Waveform`). What is none of these is the
model's input already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

PICTURE, TEXT, WAVEFORM = "picture", "text", "waveform"


@dataclass(frozen=True)
class TextPair:
    """Two texts that a model reads together, such as a premise and a hypothesis."""

    first: str
    second: str


@dataclass(frozen=True)
class Waveform:
    """Sound [T], and the samples a second that it was recorded with."""

    samples: np.ndarray
    rate: int


class InputPreprocessing(ABC):
    """How raw items of one kind become the model's input; it travels in every checkpoint.

    Samples are prepared and collated on the host, one by one and batch by batch; what arithmetic can
    wait is done on the device.
    """

    kind: ClassVar[str]

    def check(self, item: Any) -> None:
        """Look at a raw item without preparing it. Raises DataError if it cannot be used."""
        return

    def prepare(self, item: Any) -> Any:
        """Turn a raw item into a sample. Raises DataError if it cannot be used."""
        self.check(item)
        return item

    def collate(self, samples: Sequence[Any]) -> Any:
        """Make the inputs of one batch of samples: a tensor [N, ...] or a dict of them."""
        return default_collate(list(samples))

    def on_device(self, inputs: Any) -> Any:
        """Finish the inputs of a batch on the device."""
        return inputs

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds; `preprocessing_from_dict` makes the same of it again."""


def kind_of(item: Any, takes: str | None = None) -> str | None:
    """Return which kind of raw item this is, None for what is ready; `takes` decides what could be both."""
    if isinstance(item, Image.Image):
        return PICTURE
    if isinstance(item, (str, TextPair)):
        return TEXT
    if isinstance(item, Waveform) or is_audio_column(item) or (takes == WAVEFORM and _is_signal(item)):
        return WAVEFORM
    return None


def is_audio_column(value: Any) -> bool:
    """Whether `value` is a cell of a Hugging Face audio column, with `array` and `sampling_rate`."""
    if isinstance(value, Mapping):
        return {"array", "sampling_rate"} <= value.keys()
    return type(value).__name__ == "AudioDecoder"  # read like a mapping, but it is none


def _is_signal(value: Any) -> bool:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    floats = floats or (isinstance(value, np.ndarray) and value.dtype.kind == "f")
    return floats and value.ndim == 1
