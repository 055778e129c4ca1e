from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.sources.sound_files import read_waveform
from finetune.errors import DataError
from tests.helpers.files import SPECIAL, make_special, tried
from tests.helpers.sounds import write_sound
from tests.helpers.system import report_free_memory


@given(st.data(), st.integers(1, 4), st.integers(1, 3))
def test_pcm_of_every_width_is_read_exactly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, width: int, channels: int
) -> None:
    top = 2 ** (8 * width - 1)
    values = data.draw(st.lists(st.integers(-top, top - 1), min_size=channels, max_size=12 * channels))
    values = values[: len(values) // channels * channels]
    path = write_sound(tmp_path_factory.mktemp("wav") / "x.wav", np.array(values), 8000, width, channels)
    found = read_waveform(path)
    expected = (np.array(values).reshape(-1, channels) / top).mean(1)
    assert found.rate == 8000
    assert found.samples.dtype == np.float32
    np.testing.assert_allclose(found.samples, expected, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not a sound file at all, but some text of more than 44 bytes"])
def test_unreadable_sound_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.wav' cannot be read"):
        read_waveform(tmp_path / "bad.wav")
    with pytest.raises(DataError, match=r"gone\.wav' does not exist"):
        read_waveform(tmp_path / "gone.wav")


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_a_regular_file_is_a_sound(tmp_path: Path, kind: str) -> None:
    make_special(tmp_path / "a.wav", kind)
    with pytest.raises(DataError, match=r"a\.wav' cannot be read .*(this is a|No such device)"):
        read_waveform(tmp_path / "a.wav")


@given(st.data())
def test_a_damaged_sound_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = write_sound(tmp_path_factory.mktemp("wav") / "x.wav", np.arange(12), 8000, 2, 2)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    found = tried(read_waveform, path)
    if isinstance(found, DataError):
        assert re.search(r"x\.wav' cannot be read \(\w+: [^)]", str(found))
    else:
        assert found.rate > 0
        assert np.isfinite(found.samples).all()


def test_a_damaged_chunk_says_so(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "x.wav", np.arange(12), 8000, 2, 2)
    content = bytearray(path.read_bytes())
    content[16:20] = (10**9).to_bytes(4, "little")  # a format chunk of this size, for which `wave` says nothing
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.wav' cannot be read \(\w+: [^)]+\)"):
        read_waveform(path)


def _with_size(path: Path, size: int) -> Path:
    """Write 50 frames of 16 bits under a header that says `size` bytes."""
    content = bytearray(write_sound(path, np.arange(50)).read_bytes())
    content[4:8] = min(size + 36, 2**32 - 1).to_bytes(4, "little")
    content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("size", [10_000, 10**9, 4 * 10**9])
def test_a_sound_that_ends_before_its_last_frame_is_named(tmp_path: Path, size: int) -> None:
    with pytest.raises(DataError, match=rf"x\.wav' cannot be read \(EOFError: 50 of its {size // 2:,} frames"):
        read_waveform(_with_size(tmp_path / "x.wav", size))


@pytest.mark.parametrize("size", [100, 136, 2**31 - 1, 0x7FFFF000, 2**32 - 1, 2**32 - 37])
def test_a_sound_of_unknown_length_is_read_to_the_end(tmp_path: Path, size: int) -> None:
    assert len(read_waveform(_with_size(tmp_path / "x.wav", size)).samples) == 50


def test_a_sound_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _with_size(tmp_path / "x.wav", 4 * 10**9)
    with path.open("r+b") as file:
        file.truncate(4 * 10**9 + 44)  # sparse
    report_free_memory(monkeypatch, 10**9)
    with pytest.raises(DataError, match=r"x\.wav' cannot be read \(MemoryError: 2,000,000,000 frames would take 8,"):
        read_waveform(path)
