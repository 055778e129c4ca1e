"""Locks on open files: one holder at a time, released by name or with the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.files.locks import folder_locked, release, take


def test_a_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as first, (tmp_path / "f").open("wb") as second:
        take(first.fileno())
        with pytest.raises(BlockingIOError):
            take(second.fileno())
        release(first.fileno())
        take(second.fileno())
    with (tmp_path / "f").open("wb") as third:
        take(third.fileno())


def test_an_empty_new_folder_is_removed_with_its_lock(tmp_path: Path) -> None:
    with folder_locked(tmp_path / "empty"), folder_locked(tmp_path / "used"):
        (tmp_path / "used" / "f").write_bytes(b"")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
