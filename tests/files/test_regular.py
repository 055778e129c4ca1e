"""Regular files: anything that may never end is refused before it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.files.regular import check_regular, opened
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
