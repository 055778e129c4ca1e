"""How sound becomes the model's input: a Hugging Face feature extractor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from finetune.data.preprocessing.base import WAVEFORM, InputPreprocessing, Waveform, is_audio_column
from finetune.data.preprocessing.hf_files import Files, as_tensors, files_of, from_tensors, rebuild
from finetune.errors import DataError


@dataclass(frozen=True)
class AudioPreprocessing(InputPreprocessing):
    """Waveforms to what an audio model reads; travels in every checkpoint.

    An extractor that pads to a length of its own, as Whisper's 30 seconds, does so here; others pad to the
    longest waveform of the batch.

    Attributes:
        files: the feature extractor's own files, by name.
        rate: samples a second that the model expects. Nothing is resampled.
    """

    files: Files
    rate: int
    kind: ClassVar[str] = WAVEFORM

    @classmethod
    def from_extractor(cls, extractor: Any) -> AudioPreprocessing:
        """Read a feature extractor of transformers; it is not changed."""
        return cls(files_of(extractor), int(extractor.sampling_rate))

    @cached_property
    def extractor(self) -> Any:
        """The feature extractor, made from its files on first use. Raises ArgumentError without transformers."""
        return rebuild("AutoFeatureExtractor", self.files)

    def check(self, item: Any) -> None:
        """Raise DataError for another rate, for more than one channel, for silence without a sample, for NaN."""
        samples, rate = _unpacked(item)
        if rate is not None and rate != self.rate:
            raise DataError(
                f"The sound has {rate} samples a second, and the model expects {self.rate}. Resample it, for a "
                f"Hugging Face dataset with cast_column('audio', Audio(sampling_rate={self.rate}))."
            )
        if samples.ndim != 1 or len(samples) == 0 or samples.dtype.kind != "f":
            raise DataError(
                f"Expected sound of one channel, floats [T], but got {samples.dtype} {list(samples.shape)}."
            )
        if not np.isfinite(samples).all():
            raise DataError("The sound has values that are NaN or infinite. Correct or remove the sample.")

    def prepare(self, item: Any) -> np.ndarray:
        """Return the samples, float32 [T]."""
        self.check(item)
        return _unpacked(item)[0].astype(np.float32)

    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Return `input_values` [N, T] or `input_features` [N, ...], with a mask where the model has one."""
        padding = inspect.signature(self.extractor.__call__).parameters.get("padding")
        to_longest = {"padding": True} if padding is not None and padding.default is False else {}
        return dict(self.extractor(list(samples), sampling_rate=self.rate, return_tensors="pt", **to_longest))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "files": as_tensors(self.files), "rate": self.rate}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AudioPreprocessing:
        return cls(from_tensors(values["files"]), int(values["rate"]))


def _unpacked(item: Any) -> tuple[np.ndarray, int | None]:
    """Return the samples of a raw item, and their rate where it says one."""
    if isinstance(item, Waveform):
        return item.samples, item.rate
    if is_audio_column(item):
        return np.asarray(item["array"]), int(item["sampling_rate"])
    return np.asarray(item), None
