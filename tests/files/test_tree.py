"""`walk` gives the files in the order of `os.walk`, sorted, and names the links among them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.files.tree import walk


def test_the_order_is_that_of_a_sorted_walk(tmp_path: Path) -> None:
    for name in ("b/1.png", "b/0.png", "a/c/2.png", "a.png", "z.txt", "a/.hidden.png", "@eaDir/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "up").symlink_to(tmp_path)
    tree = walk(tmp_path, lambda name: name.endswith(".png"))
    assert [os.path.relpath(file, tmp_path) for file in tree.files] == [
        "a.png", "link.png", "a/c/2.png", "b/0.png", "b/1.png",
    ]  # fmt: skip
    assert tree.links == [str(tmp_path / "link.png")]
    assert tree.repeated == [str(tmp_path / "up")]
    assert tree.others == [str(tmp_path / "z.txt")]
    assert [*tree.folders.values()] == [str(tmp_path / name) for name in ("", "a", "a/c", "b")]


def test_paths_in_the_current_folder_are_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    assert walk(Path("."), lambda name: True).files == ["a.png"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_link_to_the_systems_state_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").symlink_to("/proc/self")
    with pytest.raises(DataError, match="holds no data but the system's state"):
        walk(tmp_path, lambda name: True)
