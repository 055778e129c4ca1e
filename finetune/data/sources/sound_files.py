"""Sound files: PCM `.wav`, read by the standard library."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np

from finetune.data.preprocessing.base import Waveform
from finetune.errors import DataError

WAVE_SUFFIXES = (".wav",)

_UNSIGNED = 1  # bytes: 8-bit samples are unsigned, wider ones signed (Microsoft's RIFF specification)


def is_wave_file(path: str | os.PathLike[str]) -> bool:
    """Whether `path` has the suffix of a sound file, in any case, and is not hidden."""
    name = os.path.basename(os.fspath(path))
    return name.lower().endswith(WAVE_SUFFIXES) and not name.startswith(".")


def read_waveform(path: str | os.PathLike[str]) -> Waveform:
    """Read a PCM `.wav` file of 8 to 32 bits as float32 [T] in [-1, 1]; the mean of its channels.

    Raises:
        DataError: the file is missing, or is not such a file; the message names it.
    """
    try:
        with wave.open(os.fspath(path), "rb") as file:
            content = file.readframes(file.getnframes())
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        samples = _as_floats(content, width).reshape(-1, channels).mean(1, dtype=np.float32)
    except (wave.Error, EOFError, OSError, ValueError) as error:
        if not Path(path).exists():
            raise DataError(f"The sound file '{path}' does not exist. Correct its path, or leave it out.") from error
        raise DataError(
            f"The sound file '{path}' cannot be read ({type(error).__name__}: {error}). Expected PCM .wav; convert "
            "it, or remove it from the data."
        ) from error
    return Waveform(samples, rate)


def _as_floats(content: bytes, width: int) -> np.ndarray:
    if width == _UNSIGNED:
        return (np.frombuffer(content, np.uint8).astype(np.float32) - 128) / 128
    # Each sample becomes the upper bytes of 32 bits, for 24 bits are no type of numpy's.
    wide = np.zeros((len(content) // width, 4), np.uint8)
    wide[:, 4 - width :] = np.frombuffer(content, np.uint8).reshape(-1, width)
    return (wide.view("<i4")[:, 0] / np.float64(2**31)).astype(np.float32)
