"""Locks on open files: one holder at a time, released by name or with the file."""

from __future__ import annotations

import os
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_the_lock_of_a_folder_ends_with_its_process_though_a_worker_lives_on(tmp_path: Path) -> None:
    (begun, say_begun), (end, say_end) = os.pipe(), os.pipe()
    holder = os.fork()
    if holder == 0:
        lock = folder_locked(tmp_path)
        lock.__enter__()
        if os.fork() == 0:  # the worker
            os.close(say_end)
            os.write(say_begun, b"1")
            os.read(end, 1)
        else:
            os.read(begun, 1)
        os._exit(0)  # without leaving the context, as when it is killed
    os.waitpid(holder, 0)
    with folder_locked(tmp_path):
        os.close(say_end)
    for handle in (begun, say_begun, end):
        os.close(handle)
