"""Damage to a store's files, and links in their place: no row is ever wrong, and nothing outside the store changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.caching.store.disk_store import DiskStore
from finetune.caching.store.store import StoreError
from tests.helpers.stores import SPECS, check_stored, equal, fill, values

ROWS = 6
FILES = ("header.json", "keys.bin", "0.bin", "1.bin", "2.bin", "3.bin", "sums.bin", "whole.bin")
QUICK = settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])

kept = pytest.mark.parametrize("kept_bytes", [0, 1 << 20], ids=["read each time", "kept"])


def opened(folder: Path, kept_bytes: int = 0) -> DiskStore:
    return DiskStore(folder, SPECS, ROWS, "a1", kept_bytes=kept_bytes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose rows are complete but for the last."""
    folder = tmp_path_factory.mktemp("whole")
    store = opened(folder)
    store.put(torch.arange(ROWS - 1), values(SPECS, torch.arange(ROWS - 1)))
    store.close()
    return folder / "a1"


def copied(whole: Path, folder: Path) -> Path:
    shutil.rmtree(folder / "a1", ignore_errors=True)
    return Path(shutil.copytree(whole, folder / "a1"))


def damaged_rows(store: DiskStore) -> list[int]:
    """Check that each stored row is right or an error, and return those that are errors."""
    damaged = []
    for row in range(ROWS):
        one = torch.tensor([row])
        if not store.has(one):
            continue
        try:
            assert equal(store.get(one), values(SPECS, one))
        except StoreError:
            assert not store.has(one)
            damaged.append(row)
    return damaged


def check_filled_again(store: DiskStore) -> None:
    fill(store)
    assert check_stored(store) == ROWS
    store.close()


@kept
@QUICK
@given(data=st.data())
def test_a_flipped_bit_never_changes_a_row(data: st.DataObject, kept_bytes: int, whole: Path, tmp_path: Path) -> None:
    file = copied(whole, tmp_path) / data.draw(st.sampled_from([name for name in FILES if name != "2.bin"]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    store = opened(tmp_path, kept_bytes)
    damaged = damaged_rows(store)
    if file.name in ("0.bin", "1.bin", "3.bin", "sums.bin"):
        row = next(i for i, (a, b) in enumerate(zip(content, (whole / file.name).read_bytes(), strict=True)) if a != b)
        row //= len(content) // ROWS
        assert damaged == ([row] if row < ROWS - 1 else [])
    check_filled_again(store)
    store = opened(tmp_path, kept_bytes)
    assert check_stored(store) == ROWS
    store.close()


@kept
@QUICK
@given(data=st.data())
def test_a_file_truncated_in_use_never_changes_a_row(
    data: st.DataObject, kept_bytes: int, whole: Path, tmp_path: Path
) -> None:
    copied(whole, tmp_path)
    store = opened(tmp_path, kept_bytes)
    first = torch.tensor(data.draw(st.lists(st.integers(0, ROWS - 2), unique=True)), dtype=torch.int64)
    assert equal(store.get(first), values(SPECS, first))
    file = tmp_path / "a1" / data.draw(st.sampled_from(FILES))
    os.truncate(file, data.draw(st.integers(0, file.stat().st_size)))
    damaged_rows(store)
    check_filled_again(store)


def test_damaged_rows_are_named_by_their_store(whole: Path, tmp_path: Path) -> None:
    os.truncate(copied(whole, tmp_path) / "0.bin", ROWS * 24)
    store = opened(tmp_path)
    os.truncate(tmp_path / "a1" / "0.bin", 2 * 24)
    with pytest.raises(StoreError, match=r"^3 rows in .*a1 do not match their checksums$"):
        store.get(torch.tensor([4, 0, 3, 2, 3]))
    store.close()


def test_rows_in_the_place_of_others_are_damaged(whole: Path, tmp_path: Path) -> None:
    """Whole rows and their checksums have moved, as when blocks of a disk are mixed up."""
    for name in FILES[2:]:
        file = copied(whole, tmp_path) / name if name == "0.bin" else tmp_path / "a1" / name
        content = file.read_bytes()
        size = len(content) // ROWS
        file.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    store = opened(tmp_path)
    assert damaged_rows(store) == [0, 1]
    store.close()


@pytest.mark.parametrize("kind", ["rows", "keys"])
def test_a_row_that_was_never_written_is_damaged_if_marked(kind: str, whole: Path, tmp_path: Path) -> None:
    (copied(whole, tmp_path) / "whole.bin").write_bytes(bytes(ROWS * [1]))
    if kind == "keys":
        (tmp_path / "a1" / "keys.bin").write_bytes((whole / "keys.bin").read_bytes()[:-16] + bytes(16))
    store = opened(tmp_path)
    assert damaged_rows(store) == ([ROWS - 1] if kind == "rows" else [])
    store.close()


def test_a_block_that_cannot_be_read_is_damage(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(whole, tmp_path)
    store = opened(tmp_path)
    read = os.preadv

    def refuse(file: int, buffers: Any, start: int) -> int:
        if start >= 48:
            raise OSError(5, "Input/output error")
        return read(file, buffers, start)

    monkeypatch.setattr(os, "preadv", refuse)
    assert damaged_rows(store) == [2, 3, 4]
    store.close()


# ---------------------------------------------------------------- links


def _symbolic(link: Path, target: Path) -> None:
    link.symlink_to(target)


def _dangling(link: Path, target: Path) -> None:
    target.unlink()
    link.symlink_to(target)


def _hard(link: Path, target: Path) -> None:
    link.hardlink_to(target)


@pytest.mark.parametrize("link", [_symbolic, _dangling, _hard])
@pytest.mark.parametrize("name", [*(f"a1/{name}" for name in FILES if name != "header.json"), "a1.lock"])
def test_no_file_is_written_through_a_link(
    name: str, link: Callable[[Path, Path], Any], whole: Path, tmp_path: Path
) -> None:
    cache, target = tmp_path / "cache", tmp_path / "own"
    copied(whole, cache)
    place = cache / name
    content = place.read_bytes() if place.exists() else b""
    target.write_bytes(content)
    place.unlink(missing_ok=True)
    link(place, target)
    with pytest.raises(StoreError, match=r"regular file, but this is a link|one name"):
        opened(cache)
    assert (target.read_bytes() == content) if target.exists() else link is _dangling
    place.unlink()
    check_filled_again(opened(cache))


def test_a_link_in_the_place_of_the_header_is_refused(whole: Path, tmp_path: Path) -> None:
    header = copied(whole, tmp_path / "cache") / "header.json"
    header.rename(tmp_path / "own")
    header.symlink_to(tmp_path / "own")
    with pytest.raises(StoreError, match=f"but this is a link: '{header}'"):
        opened(tmp_path / "cache")


@pytest.mark.parametrize("name", ["a1", "a1.part"])
@pytest.mark.parametrize("target", ["own", "nothing"])
def test_a_link_in_the_place_of_the_store_is_refused(name: str, target: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "own")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).symlink_to(tmp_path / target)
    with pytest.raises(StoreError, match="link"):
        opened(tmp_path / "cache")
    assert sorted(os.listdir(tmp_path / "own")) == sorted(FILES)
    assert not (tmp_path / "nothing").exists()


def test_the_users_folder_may_be_a_link(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path / "elsewhere")
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    store = opened(tmp_path / "cache")
    assert check_stored(store) == ROWS - 1
    check_filled_again(store)
