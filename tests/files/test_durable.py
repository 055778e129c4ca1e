"""Durable files: whole or unchanged, whatever happens while they are written."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.files import durable
from finetune.files.durable import check_writable, written
from tests.helpers.files import make_special


def write(path: Path, content: bytes, **options: Path) -> None:
    with written(path, **options) as file:
        file.write(content)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    with written(tmp_path / "new" / "f") as file:
        file.write(b"whole")
        assert not (tmp_path / "new" / "f").exists()

    assert (tmp_path / "new" / "f").read_bytes() == b"whole"
    assert entries(tmp_path / "new") == ["f"]


def test_an_error_leaves_the_old_file_and_no_stage(tmp_path: Path) -> None:
    write(tmp_path / "f", b"old")
    with pytest.raises(TypeError), written(tmp_path / "f") as file:
        file.write("no bytes")  # type: ignore[call-overload]

    assert (tmp_path / "f").read_bytes() == b"old"
    assert entries(tmp_path) == ["f"]


def test_the_old_file_can_be_kept(tmp_path: Path) -> None:
    for content in (b"1", b"2", b"3"):
        write(tmp_path / "f", content, keep_as=tmp_path / "before")

    assert (tmp_path / "f").read_bytes() == b"3"
    assert (tmp_path / "before").read_bytes() == b"2"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "f")
    for content in (b"first", b"second"):
        write(tmp_path / "link", content)

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "f").read_bytes() == b"second"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_permissions_are_kept(tmp_path: Path, mode: int) -> None:
    write(tmp_path / "f", b"old")
    (tmp_path / "f").chmod(mode)
    write(tmp_path / "f", b"new")

    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == mode


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write(tmp_path / "f", b"")
    (tmp_path / "plain").write_bytes(b"")

    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("kind", ["named pipe", "folder", "device"])
def test_only_a_regular_file_is_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f"
    if kind == "device":
        make_device(path)
    else:
        make_special(path, kind)
    before = path.lstat()

    with pytest.raises(OSError, match=f"regular file, but this is a {kind}"):
        write(path, b"content")
    with pytest.raises(OSError, match=f"regular file, but this is a {kind}"):
        check_writable(path)
    assert path.lstat().st_mode == before.st_mode


def make_device(path: Path) -> None:
    """Make a device like /dev/null. A link to it would put the machine's own at risk."""
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("needs the right to make devices")


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    for name in ("a" * 255, "é" * 127, "한" * 85):
        write(tmp_path / name, b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"
    with pytest.raises(OSError, match="too long"):
        write(tmp_path / ("a" * 256), b"")
    assert len(entries(tmp_path)) == 3


@pytest.mark.parametrize(
    ("moment", "then"),
    [
        ("file.flush", lambda path: write(path, b"new")),
        ("os.fsync", check_writable),
        ("Path.replace", lambda path: write(path.with_name("g"), b"another")),
    ],
)
def test_a_killed_process_leaves_the_old_file_and_its_stage_is_removed(
    tmp_path: Path, moment: str, then: Callable[[Path], None]
) -> None:
    write(tmp_path / "f", b"old")
    script = f"""
        import os, signal
        from pathlib import Path
        from finetune.files.durable import written

        def killed(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        if {moment!r} == "os.fsync":
            os.fsync = killed
        elif {moment!r} == "Path.replace":
            Path.replace = killed
        with written(Path({str(tmp_path / "f")!r})) as file:
            file.write(b"new")
            if {moment!r} == "file.flush":
                killed()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "f").read_bytes() == b"old"
    assert len(entries(tmp_path)) == 2
    then(tmp_path / "f")
    assert set(entries(tmp_path)) <= {"f", "g"}


def test_only_stages_are_removed(tmp_path: Path) -> None:
    names = [".f.part", "film.part", ".f.0123456789ab.part~", "f.0123456789ab.part", ".f.0123456789AB.part"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    write(tmp_path / "f", b"")
    assert entries(tmp_path) == sorted([*names, "f"])


def test_a_stage_that_another_writer_removes_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch) -> None:
    taken = durable.take
    removed: list[Path] = []

    def take_late(handle: int, *, wait: bool = False) -> None:
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        taken(handle, wait=wait)

    monkeypatch.setattr(durable, "take", take_late)
    write(tmp_path / "f", b"whole")
    assert removed
    assert entries(tmp_path) == ["f"]


def test_the_stage_of_another_writer_is_left_alone(tmp_path: Path) -> None:
    with written(tmp_path / "f") as slow:
        slow.write(b"slow")
        write(tmp_path / "f", b"fast")
        assert len(entries(tmp_path)) == 2

    assert (tmp_path / "f").read_bytes() == b"slow"
    assert entries(tmp_path) == ["f"]


def test_a_path_is_tried_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "f")
    assert entries(tmp_path / "new") == []
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        check_writable(tmp_path / "plain" / "f")
