"""Audio files: PCM `.wav`, read with the standard library."""

from __future__ import annotations

import os
import wave
from contextlib import nullcontext
from typing import IO

import numpy as np
import torch

from finetune.data.preprocessing.base import SOUND, Waveform
from finetune.data.sources.files import FileSource
from finetune.devices.free_memory import free_memory
from finetune.errors import DataError
from finetune.files.regular import opened
from finetune.naming.paths import exists

_SMALL = 2**26  # bytes of samples that any machine has
_AT_ONCE = 2**20  # samples that are converted together
_HEADER = 64  # bytes that a size may be too large by, because some writers count the header
_UNKNOWN = 8192  # bytes by which a size is less than 2 or 4 GB if the file was written to a pipe, by sox for example
_UNSIGNED = 1  # bytes per sample; 8-bit samples are unsigned, wider ones signed (Microsoft's RIFF specification)


def read_waveform(path: str | os.PathLike[str] | IO[bytes]) -> Waveform:
    """Read a PCM `.wav` file of 8 to 32 bits as float32 [T] in [-1, 1], averaged over its channels.

    Raises:
        DataError: If the file is missing or is not PCM. The message names it.
    """
    try:
        source = opened(os.fspath(path)) if isinstance(path, (str, os.PathLike)) else nullcontext(path)
        with source as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            with wave.open(stream, "rb") as file:
                samples, rate = _samples_of(file, size), file.getframerate()
        if rate < 1:
            raise ValueError(f"a sampling rate of {rate}")
    except Exception as error:  # damaged files raise several types, of which some say nothing
        name = path if isinstance(path, (str, os.PathLike)) else getattr(path, "name", "in memory")
        if isinstance(path, (str, os.PathLike)) and not exists(path):
            raise DataError(f"The audio file '{name}' does not exist. Correct its path, or leave it out.") from error
        raise DataError(
            f"The audio file '{name}' cannot be read ({type(error).__name__}: {str(error) or 'damaged'}). Expected "
            "PCM .wav; convert it, or remove it from the data."
        ) from error
    return Waveform(samples, rate)


def _samples_of(file: wave.Wave_read, size: int) -> np.ndarray:
    """Read the frames of an open file of `size` bytes in parts, because floats take several times their bytes.

    Raises:
        MemoryError: If they would take more than a quarter of the free memory, which holds copies, too.
        EOFError: If the file ends before its last frame, unless its length was unknown when the header was written.
    """
    width, channels, declared = file.getsampwidth(), file.getnchannels(), file.getnframes()
    frames = min(declared, size // (width * channels))
    needed = frames * 4
    if needed > _SMALL and needed > (most := free_memory(torch.device("cpu")) // 4):
        raise MemoryError(f"{frames:,} frames would take {needed:,} bytes of memory, of which {most:,} may be used")
    samples, count = np.empty(frames, np.float32), 0
    while content := file.readframes(max(1, _AT_ONCE // channels)):
        part = _as_floats(content, width).reshape(-1, channels).mean(1, dtype=np.float32)
        samples[count : count + len(part)] = part
        count += len(part)
    missing = (declared - count) * width * channels
    unknown = -(declared * width * channels) % 2**31 < _UNKNOWN
    if missing > _HEADER and not unknown:
        raise EOFError(f"{count:,} of its {declared:,} frames are there")
    return samples[:count]


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
