"""Kinds of raw items, and the interface of every preprocessing.

A raw item is an image (PIL), a text (a str or a `TextPair`), or audio (a 1-d array, a `Waveform`, or a
cell of a Hugging Face audio column). A source states which kind it holds, and a preprocessing which kind it
takes. Anything else is already model input.
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

IMAGE, TEXT, SOUND = "picture", "text", "waveform"  # the values are written to checkpoints


@dataclass(frozen=True)
class TextPair:
    """Two texts that a model reads together, such as a premise and a hypothesis."""

    first: str
    second: str


@dataclass(frozen=True)
class Waveform:
    """Audio with its sampling rate.

    Attributes:
        samples: Amplitudes [T].
        rate: Samples per second.
    """

    samples: np.ndarray
    rate: int


class InputPreprocessing(ABC):
    """Conversion of one kind of raw item to model input, saved in every checkpoint.

    The host prepares each sample and collates batches; the device does the remaining arithmetic.
    """

    kind: ClassVar[str]

    def check(self, item: Any) -> None:
        """Check a raw item without preparing it.

        Raises:
            DataError: If the item cannot be used.

        Example:
            >>> from finetune import Preprocessing
            >>> Preprocessing().check(Image.new("RGB", (40, 32)))
        """
        return

    def prepare(self, item: Any) -> Any:
        """Convert a raw item to a sample.

        Raises:
            DataError: If the item cannot be used.
        """
        self.check(item)
        return item

    def collate(self, samples: Sequence[Any]) -> Any:
        """Return the inputs of a batch: a tensor [N, ...] or a dict of tensors.

        Example:
            >>> from finetune import Preprocessing
            >>> preprocessing = Preprocessing(crop_size=(96, 96))
            >>> preprocessing.collate([preprocessing.prepare(Image.open("dog.png"))] * 2).shape
            torch.Size([2, 3, 96, 96])
        """
        return default_collate(list(samples))

    def on_device(self, inputs: Any) -> Any:
        """Finish the inputs of a batch on the device."""
        return inputs

    def is_unprepared(self, inputs: Any) -> bool:
        """Return whether inputs that count as ready for the model were rather not prepared in this way.

        Example:
            >>> import torch
            >>> from finetune import Preprocessing
            >>> Preprocessing().is_unprepared(torch.rand(2, 3, 224, 224))
            True
        """
        return False

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the content for a checkpoint, which `preprocessing_from_dict` reads."""


def kind_of(item: Any, takes: str | None = None) -> str | None:
    """Return the kind of a raw item, or None for model input.

    Args:
        item: Item of a dataset.
        takes: Kind that the preprocessing takes. A 1-d float array counts as audio only if it takes audio.
    """
    if isinstance(item, Image.Image) or (takes == IMAGE and is_image_cell(item)):
        return IMAGE
    if isinstance(item, (str, TextPair)):
        return TEXT
    if isinstance(item, Waveform) or is_audio_column(item) or (takes == SOUND and _is_signal(item)):
        return SOUND
    return None


def is_audio_column(value: Any) -> bool:
    """Return whether `value` is a cell of a Hugging Face audio column, with `array` and `sampling_rate`."""
    if isinstance(value, Mapping):
        return {"array", "sampling_rate"} <= value.keys()
    return type(value).__name__ == "AudioDecoder"  # reads like a mapping without being one


def is_image_cell(value: Any) -> bool:
    """Return whether `value` is a cell of a Hugging Face column that is not decoded, with `bytes` and `path`.

    Columns of images and of audio have the same form.
    """
    return isinstance(value, Mapping) and value.keys() == {"bytes", "path"}


def _is_signal(value: Any) -> bool:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    floats = floats or (isinstance(value, np.ndarray) and value.dtype.kind == "f")
    return floats and value.ndim == 1
