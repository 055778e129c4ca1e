"""Preprocessing of audio with a Hugging Face feature extractor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from finetune.data.preprocessing.base import SOUND, InputPreprocessing, Waveform, is_audio_column
from finetune.data.preprocessing.hf_files import (
    PretrainedFiles,
    class_in,
    files_from_tensors,
    files_to_tensors,
    load_pretrained,
    saved_files,
)
from finetune.devices.free_memory import free_memory
from finetune.errors import DataError
from finetune.threads.cached import cached_property

_SMALL = 2**28  # bytes that any machine has
_BYTES_PER_SAMPLE = 12  # of a padded batch: the float32 arrays, their stack, and its tensor


@dataclass(frozen=True)
class SoundPreprocessing(InputPreprocessing):
    """Preprocessing from waveforms to the input of an audio model, by its feature extractor.

    An extractor with a fixed length, such as Whisper's 30 seconds, pads to that length. Others pad to
    the longest waveform of the batch.

    Attributes:
        files: Files of the feature extractor.
        rate: Samples per second that the model expects. Audio is never resampled.
    """

    files: PretrainedFiles
    rate: int
    kind: ClassVar[str] = SOUND

    def __repr__(self) -> str:
        return f"{type(self).__name__}({class_in(self.files, 'feature_extractor_type')}, rate={self.rate})"

    @classmethod
    def from_extractor(cls, extractor: Any) -> SoundPreprocessing:
        """Return the preprocessing of a transformers feature extractor, which stays unchanged."""
        return cls(saved_files(extractor), int(extractor.sampling_rate))

    @cached_property
    def extractor(self) -> Any:
        """Feature extractor, loaded from its files on first use. Raises ArgumentError without transformers."""
        return load_pretrained("AutoFeatureExtractor", self.files)

    def check(self, item: Any) -> None:
        """Check the rate, the shape and the values of a waveform.

        Raises:
            DataError: If the rate differs from the model's, or if the audio is empty, has several
                channels, or contains NaN or infinite values.
        """
        samples, rate = _unpacked(item)
        if rate is not None and rate != self.rate:
            raise DataError(
                f"The audio has {rate} samples per second, but the model expects {self.rate}. Resample it, in a "
                f"Hugging Face dataset with cast_column('audio', Audio(sampling_rate={self.rate}))."
            )
        if samples.ndim != 1 or len(samples) == 0 or samples.dtype.kind != "f":
            raise DataError(
                f"Expected audio with one channel, floats [T], but got {samples.dtype} {list(samples.shape)}."
            )
        if not np.isfinite(samples).all():
            raise DataError("The audio contains NaN or infinite values. Correct or remove the sample.")

    def prepare(self, item: Any) -> np.ndarray:
        """Return the samples, float32 [T]."""
        self.check(item)
        return _unpacked(item)[0].astype(np.float32)

    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Return `input_values` [N, T] or `input_features` [N, ...], with a mask if the model takes one."""
        padding = inspect.signature(self.extractor.__call__).parameters.get("padding")
        to_longest = {"padding": True} if padding is not None and padding.default is False else {}
        if to_longest:
            check_padded(len(samples), max(map(len, samples)))
        return dict(self.extractor(list(samples), sampling_rate=self.rate, return_tensors="pt", **to_longest))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "files": files_to_tensors(self.files), "rate": self.rate}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SoundPreprocessing:
        return cls(files_from_tensors(values["files"]), int(values["rate"]))


def check_padded(count: int, longest: int) -> None:
    """Raise DataError if waveforms, padded to the longest, would not fit into memory."""
    needed = count * longest * _BYTES_PER_SAMPLE
    if needed > _SMALL and needed > (free := free_memory(torch.device("cpu"))):
        raise DataError(
            f"A batch of {count} waveforms, padded to the longest of {longest:,} samples, would take {needed:,} bytes "
            f"of memory, of which {free:,} are free. Pass a smaller batch_size, or cut long audio into parts."
        )


def _unpacked(item: Any) -> tuple[np.ndarray, int | None]:
    """Return the samples of a raw item, and its sampling rate or None."""
    if isinstance(item, Waveform):
        return item.samples, item.rate
    if is_audio_column(item):
        return np.asarray(item["array"]), int(item["sampling_rate"])
    return np.asarray(item), None
