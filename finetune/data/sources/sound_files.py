"""Audio files: PCM `.wav`, read with the standard library."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np

from finetune.data.preprocessing.base import SOUND, Waveform
from finetune.data.sources.files import FileSource
from finetune.errors import DataError

_UNSIGNED = 1  # bytes per sample; 8-bit samples are unsigned, wider ones signed (Microsoft's RIFF specification)


def read_waveform(path: str | os.PathLike[str]) -> Waveform:
    """Read a PCM `.wav` file of 8 to 32 bits as float32 [T] in [-1, 1], averaged over its channels.

    Raises:
        DataError: If the file is missing or is not PCM. The message names it.
    """
    try:
        with wave.open(os.fspath(path), "rb") as file:
            content = file.readframes(file.getnframes())
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        samples = _as_floats(content, width).reshape(-1, channels).mean(1, dtype=np.float32)
    except (wave.Error, EOFError, OSError, ValueError) as error:
        if not Path(path).exists():
            raise DataError(f"The audio file '{path}' does not exist. Correct its path, or leave it out.") from error
        raise DataError(
            f"The audio file '{path}' cannot be read ({type(error).__name__}: {error}). Expected PCM .wav; convert "
            "it, or remove it from the data."
        ) from error
    return Waveform(samples, rate)


def _as_floats(content: bytes, width: int) -> np.ndarray:
    if width == _UNSIGNED:
        return (np.frombuffer(content, np.uint8).astype(np.float32) - 128) / 128
    # NumPy has no 24-bit type, so each sample becomes the upper bytes of 32 bits.
    wide = np.zeros((len(content) // width, 4), np.uint8)
    wide[:, 4 - width :] = np.frombuffer(content, np.uint8).reshape(-1, width)
    return (wide.view("<i4")[:, 0] / np.float64(2**31)).astype(np.float32)


class SoundFiles(FileSource):
    """Audio files, read as waveforms."""

    kind = SOUND
    noun = "audio file"
    suffixes = (".wav",)
    read = staticmethod(read_waveform)
    verify = staticmethod(read_waveform)
