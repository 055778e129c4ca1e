"""Regular files: anything that may never end is refused before it is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune.files.regular import check_regular, opened, opened_directly
from tests.helpers.files import SPECIAL, make_special


def test_a_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    (tmp_path / "link").symlink_to("f")
    for name in ("f", "link"):
        check_regular(tmp_path / name)
        with opened(tmp_path / name) as file:
            assert file.read() == b"content"


@pytest.mark.parametrize("kind", SPECIAL)
def test_anything_else_is_an_error_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f"
    make_special(path, kind)

    with pytest.raises(OSError, match=f"regular file, but this is a {kind}"):
        check_regular(path)
    with pytest.raises(OSError, match=r"regular file|No such device"):  # a socket cannot even be opened
        opened(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        opened_directly(tmp_path / "none", os.O_RDWR)


@pytest.mark.parametrize("target", ["file", "new"])
def test_a_link_is_not_opened_directly(target: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(target)
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with pytest.raises(OSError, match="regular file, but this is a link"):
            opened_directly(tmp_path / "link", flags)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_a_second_name_is_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "second").hardlink_to(tmp_path / "file")
    os.close(opened_directly(tmp_path / "second", os.O_RDONLY))
    with pytest.raises(OSError, match="one name"):
        opened_directly(tmp_path / "second", os.O_RDWR)


@pytest.mark.parametrize("kind", SPECIAL)
def test_nothing_else_is_opened_directly(tmp_path: Path, kind: str) -> None:
    make_special(tmp_path / "f", kind)
    with pytest.raises(OSError, match=f"regular file, but this is a ({kind}|link)"):
        opened_directly(tmp_path / "f", os.O_RDWR)
