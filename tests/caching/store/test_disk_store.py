"""The store on disk: marked rows are right, whatever happens to the process, the disk or the folder."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune import errors
from finetune.caching.store.disk_store import FORMAT_VERSION, KEY, DiskStore
from finetune.caching.store.store import Spec, StoreError
from finetune.errors import ArgumentError
from tests.helpers.stores import SPECS, check_stored, equal, fill, values

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills, forks and limits of POSIX")


def test_the_users_folder_is_kept_and_found_again(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "new" / "folder", SPECS, 10, "a1")
    fill(store, start=4)
    store.close()
    store.close()
    assert not store.has(torch.tensor([5]))
    again = DiskStore(tmp_path / "new" / "folder", SPECS, 10, "a1")
    other = DiskStore(tmp_path / "new" / "folder", SPECS, 10, "b2")
    assert check_stored(again) == 6
    assert check_stored(other) == 0
    again.delete()
    other.close()
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"b2", "b2.lock"}


def test_a_temporary_store_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = DiskStore(None, SPECS, 10)
    fill(store)
    assert not list(tmp_path.iterdir())  # not even for a process that is killed
    assert check_stored(store) == 10
    store.close()


def test_a_store_that_is_never_closed_releases_its_lock(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    assert store.writable
    del store
    gc.collect()
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    assert store.writable
    store.close()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArgumentError, match="is not a folder"):
            DiskStore(folder, SPECS, 10, "a1")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/"])
def test_a_fingerprint_is_letters_and_digits(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="letters and digits"):
        DiskStore(tmp_path, SPECS, 10, name)


def _change_header(**changes: Any) -> Callable[[Path], Any]:
    def change(store: Path) -> None:
        header = json.loads((store / "header.json").read_text())
        (store / "header.json").write_text(json.dumps({**header, **changes}))

    return change


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "header cut short": lambda store: os.truncate(store / "header.json", 20),
    "header empty": lambda store: (store / "header.json").write_text(""),
    "header of bytes": lambda store: (store / "header.json").write_bytes(bytes(range(200, 256))),
    "header a list": lambda store: (store / "header.json").write_text("[1]"),
    "header gone": lambda store: (store / "header.json").unlink(),
    "another version": _change_header(version=FORMAT_VERSION + 1),
    "another type": _change_header(tensors=[{"shape": [3, 2], "dtype": "torch.int32"}]),
    "another fingerprint": _change_header(fingerprint="b2"),
    "rows cut short": lambda store: os.truncate(store / "0.bin", 100),
    "rows gone": lambda store: (store / "1.bin").unlink(),
    "checksums cut short": lambda store: os.truncate(store / "sums.bin", 39),
    "marks cut short": lambda store: os.truncate(store / "whole.bin", 9),
    "keys gone": lambda store: (store / "keys.bin").unlink(),
    "keys empty": lambda store: os.truncate(store / "keys.bin", 0),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_created_anew(damage: str, tmp_path: Path) -> None:
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    fill(store)
    store.close()
    DAMAGE[damage](tmp_path / "a1")
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    assert check_stored(store) == 0
    fill(store)
    assert check_stored(store) == 10
    store.close()


def keys(*names: str) -> np.ndarray:
    return np.array([name.encode().ljust(16, b"-") for name in names], KEY)


def test_samples_are_found_by_their_keys(tmp_path: Path) -> None:
    """Another subset of the same data, reordered and with new samples, finds the stored rows."""
    store = DiskStore(tmp_path, SPECS, keys("a", "b", "c", "d"), "a1")
    store.put(torch.tensor([0, 1, 2]), values(SPECS, torch.tensor([0, 1, 2])))
    store.close()
    part = DiskStore(tmp_path, SPECS, keys("x", "c", "d", "a", "c"), "a1")
    assert [part.has(torch.tensor([i])) for i in range(5)] == [False, True, False, True, True]
    assert equal(part.get(torch.tensor([4, 3, 1])), values(SPECS, torch.tensor([2, 0, 2])))
    part.put(torch.tensor([2, 0]), values(SPECS, torch.tensor([3, 23])))
    assert part.full
    part.close()
    whole = DiskStore(tmp_path, SPECS, keys("a", "b", "c", "d", "x"), "a1")
    assert equal(whole.get(torch.arange(5)), values(SPECS, torch.tensor([0, 1, 2, 3, 23])))
    assert (tmp_path / "a1" / "keys.bin").stat().st_size == 5 * 16
    whole.close()


def test_truncated_keys_drop_their_marks(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, SPECS, keys("a", "b", "c"), "a1")
    fill(store)
    store.close()
    os.truncate(tmp_path / "a1" / "keys.bin", 2 * 16 + 5)
    store = DiskStore(tmp_path, SPECS, keys("a", "b", "x"), "a1")
    assert [store.has(torch.tensor([i])) for i in range(3)] == [True, True, False]
    store.close()


def test_a_reader_sees_only_marked_rows(tmp_path: Path) -> None:
    writer = DiskStore(tmp_path, SPECS, keys("a", "b"), "a1")
    reader = DiskStore(tmp_path, SPECS, keys("b", "x"), "a1")
    assert not reader.writable
    fill(writer)
    writer.flush()
    reader.put(torch.tensor([1]), values(SPECS, torch.tensor([1])))
    reader.refresh()
    assert (reader.has(torch.tensor([0])), reader.has(torch.tensor([1]))) == (True, False)
    writer.close()
    reader.refresh()
    assert reader.writable
    reader.put(torch.tensor([1]), values(SPECS, torch.tensor([7])))
    assert equal(reader.get(torch.tensor([1, 0])), values(SPECS, torch.tensor([7, 1])))
    reader.close()


def test_only_a_one_marks_a_row(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, SPECS, 4, "a1")
    fill(store)
    store.close()
    (tmp_path / "a1" / "whole.bin").write_bytes(bytes([1, 0, 255, 1]))
    store = DiskStore(tmp_path, SPECS, 4, "a1")
    assert check_stored(store) == 2
    store.close()


def test_a_read_only_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    fill(store, start=5)
    store.close()

    opened = os.open

    def refuse(path: Any, flags: int, *args: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *args)

    monkeypatch.setattr(os, "open", refuse)
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    assert not store.writable
    fill(store)
    assert check_stored(store) == 5
    store.close()
    with pytest.raises(StoreError, match="Permission denied"):
        DiskStore(tmp_path, SPECS, 10, "b2")


def test_a_full_disk_fails_before_anything_is_stored(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"has no room for 0\.0042 GB"):
            DiskStore(tmp_path, [Spec((1 << 20,), torch.float32)], 1, "a1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a1.lock"]


@pytest.mark.parametrize("no_fallocate", [errno.EOPNOTSUPP, None])
def test_blocks_are_allocated_without_posix_fallocate(
    no_fallocate: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if no_fallocate is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:

        def refuse(*args: Any) -> None:
            raise OSError(no_fallocate, "not supported")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    store = DiskStore(tmp_path, [Spec((1000,), torch.float32)], 10, "a1", chunk_bytes=1000)
    assert (tmp_path / "a1" / "0.bin").stat().st_blocks * 512 >= 40_000
    fill(store)
    assert check_stored(store) == 10
    store.close()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_fills_up_later_keeps_marked_rows(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskStore(tmp_path, SPECS, 10, "a1", mark_interval=0.0)
    indices = torch.arange(4)
    store.put(indices, values(SPECS, indices))

    def refuse(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, call, refuse)
        with pytest.raises(StoreError, match="has no room"):
            store.put(indices + 4, values(SPECS, indices + 4))
    assert not store.writable
    fill(store)  # has no effect
    assert check_stored(store) == 4
    store.close()
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    assert check_stored(store) == 4
    store.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_memory_use_stays_flat() -> None:
    def own_memory() -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        return int(line.split()[1]) * 1024

    store = DiskStore(None, [Spec((1 << 18,), torch.float32)], 64, kept_bytes=0)
    rows = torch.ones(1, 1 << 18)
    before = own_memory()
    for index in range(64):
        store.put(torch.tensor([index]), [rows])
    for index in range(64):
        assert store.get(torch.tensor([index]))[0].equal(rows)
    assert own_memory() - before < 64 << 18  # a quarter of the stored bytes
    store.close()


def test_a_store_created_anew_while_opening_is_not_read(tmp_path: Path) -> None:
    class Slow(DiskStore):
        def _opened_files(self, opened: ExitStack) -> list[int]:
            files = super()._opened_files(opened)
            writing[0].delete()
            writing[0] = DiskStore(tmp_path, SPECS, 10, "a1")
            fill(writing[0])
            return files

    writing = [DiskStore(tmp_path, SPECS, 10, "a1")]
    reading = Slow(tmp_path, SPECS, 10, "a1")
    assert check_stored(reading) == 0
    reading.close()
    writing[0].close()


# Several processes, some of them killed. They are forked from one that does nothing else.


def forked(work: Callable[[], Any]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(child: int) -> int:
    return os.waitpid(child, 0)[1]


def fill_until(last: int, folder: Path) -> None:
    """Fill a store, and be killed at disk call number `last`, halfway through if possible."""
    calls = 0
    write, fsync, fallocate = os.write, os.fsync, getattr(os, "posix_fallocate", None)

    def count(half: Callable[[], Any] | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(file: int, data: Any) -> int:
        count(lambda: write(file, data[: len(data) // 2]))
        return write(file, data)

    def dying_fsync(file: int) -> None:
        count()
        fsync(file)

    def dying_fallocate(file: int, start: int, size: int) -> None:
        count(lambda: fallocate(file, start, (size + 1) // 2))
        fallocate(file, start, size)

    def audit(event: str, arguments: Any) -> None:
        if event in ("open", "os.mkdir", "os.rename") and str(folder) in str(arguments[0]):
            count()

    os.write, os.fsync = dying_write, dying_fsync
    if fallocate is not None:
        os.posix_fallocate = dying_fallocate
    sys.addaudithook(audit)
    store = DiskStore(folder, SPECS, 6, "a1", mark_interval=0.0)
    fill(store)
    store.close()


def killed_at_any_point(folder: Path) -> None:
    counts = []
    status = int(signal.SIGKILL)
    while status == signal.SIGKILL:
        call, cache = len(counts) + 1, folder / f"killed at call {len(counts) + 1}"
        print(cache.name, file=sys.stderr)  # pytest shows it if an assertion fails
        status = ended(forked(partial(fill_until, call, cache)))
        store = DiskStore(cache, SPECS, 6, "a1")
        assert store.writable
        counts.append(check_stored(store))
        fill(store)
        assert check_stored(store) == 6
        store.close()
        assert sorted(os.listdir(cache)) == ["a1", "a1.lock"]
    assert status == 0
    assert counts == sorted(counts)
    assert {0, 3, 6} <= set(counts)
    assert len(counts) > 30


def filled_by_several_at_once(folder: Path) -> None:
    def run(seed: int) -> None:
        store = DiskStore(folder, SPECS, 200, "a1", mark_interval=0.001)
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        deadline = time.monotonic() + 60
        while not store.full:
            assert time.monotonic() < deadline
            check_stored(store)
            for indices in order[: 200 if seed else 100].split(9):
                if not store.has(indices):
                    store.put(indices, values(SPECS, indices))
            if store.writable and not seed:
                os.kill(os.getpid(), signal.SIGKILL)  # and another takes over
            store.refresh()
        assert check_stored(store) == 200
        store.close()

    children = [forked(partial(run, seed)) for seed in range(4)]
    assert set(map(ended, children)) <= {0, int(signal.SIGKILL)}


def read_while_another_fills(folder: Path) -> None:
    def run() -> None:
        store = DiskStore(folder, SPECS, 20, "a1", mark_interval=0.0)
        store.put(torch.arange(5), values(SPECS, torch.arange(5)))
        (folder / "ready").touch()
        time.sleep(600)

    first = forked(run)
    try:
        while not (folder / "ready").exists():
            time.sleep(0.01)
        second = DiskStore(folder, SPECS, 20, "a1")
        assert not second.writable
        fill(second)
        second.refresh()
        assert not second.writable
        assert check_stored(second) == 5
        second.delete()
        assert (folder / "a1").exists()  # only the first store may delete it
        second = DiskStore(folder, SPECS, 20, "a1")
    finally:
        os.kill(first, signal.SIGKILL)
        ended(first)
    second.refresh()
    assert second.writable
    assert check_stored(second) == 5
    fill(second)
    assert check_stored(second) == 20
    second.close()


def freed_though_a_worker_lives_on(folder: Path) -> None:
    store = DiskStore(folder, SPECS, 20, "a1")
    worker = forked(partial(time.sleep, 600))  # holds all descriptors, as a loader's does
    store.close()
    try:
        store = DiskStore(folder, SPECS, 20, "a1")
        assert store.writable
        store.close()
    finally:
        os.kill(worker, signal.SIGKILL)
        ended(worker)


SCENES = [
    killed_at_any_point, filled_by_several_at_once, read_while_another_fills, freed_though_a_worker_lives_on,
]  # fmt: skip


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all scenes in a process of their own, and return their tracebacks."""
    script = f"""
        import json, os, sys, traceback, types
        from pathlib import Path
        os.fsync = lambda file: None  # the system keeps what a killed process has written, synced or not
        bare = sys.modules["finetune"] = types.ModuleType("finetune")  # skips the imports of `finetune/__init__.py`
        bare.__path__ = [{str(Path(errors.__file__).parent)!r}]
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[3])!r}]
        import test_disk_store
        failures = {{}}
        for scene in test_disk_store.SCENES:
            folder = Path({str(tmp_path_factory.mktemp("scenes"))!r}) / scene.__name__
            folder.mkdir()
            try:
                scene(folder)
            except Exception:
                failures[scene.__name__] = traceback.format_exc()
        print(json.dumps(failures))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("scene", [scene.__name__ for scene in SCENES])
def test_several_processes(scene: str, failures: dict[str, str]) -> None:
    assert scene not in failures, failures[scene]
