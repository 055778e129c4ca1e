"""Stores of activations: what is there is right, whatever happens to the process, the disk or the folder."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune import errors
from finetune.caching.store.disk_store import FORMAT_VERSION, KEY, DiskStore
from finetune.caching.store.memory_store import MemoryStore
from finetune.caching.store.store import Spec, Store, StoreError, StoreSlice
from finetune.errors import ArgumentError

QUICK = settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.float8_e4m3fn,
)  # fmt: skip
SPECS = (Spec((3, 2), torch.float32), Spec((), torch.int64), Spec((2, 0), torch.float32), Spec((5,), torch.bfloat16))


MAKERS = ["memory", "disk", "temporary"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills, forks and limits of POSIX")


def values(specs: Sequence[Spec], indices: Tensor, version: int = 0) -> tuple[Tensor, ...]:
    """Return what is to be stored of some samples, as follows from their numbers."""
    made = []
    for spec in specs:
        largest = 1 if spec.dtype == torch.bool else 250
        bits = (indices[:, None] * 31 + torch.arange(spec.bytes) * 7 + 1 + version) % (largest + 1)
        made.append(bits.to(torch.uint8).flatten().view(spec.dtype).reshape(len(indices), *spec.shape))
    return tuple(made)


def equal(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Tell whether tensors are the same, bit for bit."""
    return len(ones) == len(others) and all(
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.flatten().view(torch.uint8).equal(other.flatten().view(torch.uint8))
        for one, other in zip(ones, others, strict=True)
    )


def check_all_that_is_there(store: Store) -> int:
    """Check every sample that the store has; return how many these are."""
    there = [index for index in range(store.num_rows) if store.has(torch.tensor([index]))]
    assert equal(store.get(torch.tensor(there, dtype=torch.int64)), values(store.specs, torch.tensor(there).long()))
    return len(there)


def fill(store: Store, start: int = 0) -> None:
    for indices in torch.arange(start, store.num_rows).split(3):
        store.put(indices, values(store.specs, indices))


@contextmanager
def opened(kind: str, folder: Path, specs: Sequence[Spec], num_rows: int) -> Iterator[Store]:
    if kind == "memory":
        store: Store = MemoryStore(specs, num_rows)
    else:
        store = DiskStore(None if kind == "temporary" else folder, specs, num_rows, "a1")
    yield store
    store.close()


specs_drawn = st.lists(
    st.builds(Spec, st.lists(st.integers(0, 3), max_size=3).map(tuple), st.sampled_from(DTYPES)), min_size=1, max_size=3
)
puts = st.lists(st.lists(st.integers(0, 8), max_size=5, unique=True), max_size=6)


@pytest.mark.parametrize("kind", MAKERS)
@QUICK
@given(specs=specs_drawn, puts=puts, asked=st.lists(st.integers(0, 8), max_size=5))
def test_a_store_is_a_dict_of_tensors(
    kind: str, tmp_path: Path, specs: list[Spec], puts: list[list[int]], asked: list[int]
) -> None:
    expected: dict[int, int] = {}
    shutil.rmtree(tmp_path / "a1", ignore_errors=True)
    wanted = torch.tensor(asked, dtype=torch.int64)

    def check(store: Store) -> None:
        assert store.has(wanted) == all(index in expected for index in asked)
        assert store.full == (len(expected) == 9)
        for index, version in expected.items():
            one = torch.tensor([index])
            assert equal(store.get(one), values(specs, one, version))
        if store.has(wanted):
            rows = [values(specs, wanted[i : i + 1], expected[index]) for i, index in enumerate(asked)]
            if rows:
                assert equal(store.get(wanted), [torch.cat(column) for column in zip(*rows, strict=True)])
        else:
            with pytest.raises(KeyError):
                store.get(wanted)

    with opened(kind, tmp_path, specs, 9) as store:
        for version, numbers in enumerate(puts):
            indices = torch.tensor(numbers, dtype=torch.int64)
            store.put(indices, values(specs, indices, version))
            for number in numbers:
                expected.setdefault(number, version)  # what is there stays
            check(store)
    if kind == "disk":
        with opened(kind, tmp_path, specs, 9) as store:
            check(store)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_a_store_gives_is_a_copy(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path, SPECS, 5) as store:
        fill(store)
        store.get(torch.arange(5))[0].zero_()
        assert check_all_that_is_there(store) == 5


@pytest.mark.parametrize("kind", MAKERS)
def test_what_does_not_fit_is_refused(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path, [Spec((2,), torch.float32)], 5) as store:
        for wrong in (torch.zeros(1, 3), torch.zeros(2, 2), torch.zeros(1, 2).double()):
            with pytest.raises(ValueError, match="rows of"):
                store.put(torch.tensor([1]), [wrong])
        for outside in (-1, 5):
            with pytest.raises(IndexError):
                store.put(torch.tensor([outside]), [torch.zeros(1, 2)])
            with pytest.raises(IndexError):
                store.get(torch.tensor([outside]))
        store.put(torch.tensor([1]), [torch.zeros(2, 1).T])  # of any strides
        assert store.has(torch.tensor([1]))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_store_without_samples_is_whole(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path, SPECS, 0) as store:
        assert store.full
        assert [len(tensor) for tensor in store.get(torch.empty(0, dtype=torch.int64))] == [0, 0, 0, 0]


def test_memory_that_there_is_not() -> None:
    with pytest.raises(StoreError, match="no room for"):
        MemoryStore([Spec((1 << 50,), torch.float32)], 1000)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", MAKERS)
def test_pinned_rows_are_the_same(kind: str, tmp_path: Path) -> None:
    store = (
        MemoryStore(SPECS, 7, pinned=True)
        if kind == "memory"
        else DiskStore(tmp_path if kind == "disk" else None, SPECS, 7, "a1", pinned=True)
    )
    fill(store)
    assert all(tensor.is_pinned() or not tensor.numel() for tensor in store.get(torch.tensor([1, 0])))
    assert check_all_that_is_there(store) == 7
    store.close()


@pytest.mark.gpu
def test_rows_on_a_device() -> None:
    store = MemoryStore(SPECS, 7, device="cuda")
    fill(store)
    taken = store.get(torch.tensor([6, 2, 2]))
    assert all(tensor.is_cuda for tensor in taken)
    assert equal([tensor.cpu() for tensor in taken], values(SPECS, torch.tensor([6, 2, 2])))


# What follows is about files.


def test_a_folder_of_the_user_stays_and_is_found_again(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "new" / "folder", SPECS, 10, "a1")
    fill(store, start=4)
    store.close()
    store.close()
    assert not store.has(torch.tensor([5]))
    again = DiskStore(tmp_path / "new" / "folder", SPECS, 10, "a1")
    other = DiskStore(tmp_path / "new" / "folder", SPECS, 10, "b2")
    assert check_all_that_is_there(again) == 6
    assert check_all_that_is_there(other) == 0
    again.delete()
    other.close()
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"b2", "b2.lock"}


def test_a_temporary_store_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = DiskStore(None, SPECS, 10)
    fill(store)
    assert not list(tmp_path.iterdir())  # not even for a process that is killed
    assert check_all_that_is_there(store) == 10
    store.close()


def test_a_store_that_nobody_closes_frees_its_lock(tmp_path: Path) -> None:
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
def test_a_fingerprint_names_one_folder_of_its_own(name: str, tmp_path: Path) -> None:
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
    "marks cut short": lambda store: os.truncate(store / "whole.bin", 9),
    "keys gone": lambda store: (store / "keys.bin").unlink(),
    "keys empty": lambda store: os.truncate(store / "keys.bin", 0),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_store_that_is_damaged_is_made_anew(damage: str, tmp_path: Path) -> None:
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    fill(store)
    store.close()
    DAMAGE[damage](tmp_path / "a1")
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    assert check_all_that_is_there(store) == 0
    fill(store)
    assert check_all_that_is_there(store) == 10
    store.close()


def keys(*names: str) -> np.ndarray:
    return np.array([name.encode().ljust(16, b"-") for name in names], KEY)


def test_samples_are_found_by_their_keys(tmp_path: Path) -> None:
    """Another part of the same data, in another order and with samples that are new, finds what is there."""
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


def test_keys_cut_short_leave_no_mark_behind(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, SPECS, keys("a", "b", "c"), "a1")
    fill(store)
    store.close()
    os.truncate(tmp_path / "a1" / "keys.bin", 2 * 16 + 5)
    store = DiskStore(tmp_path, SPECS, keys("a", "b", "x"), "a1")
    assert [store.has(torch.tensor([i])) for i in range(3)] == [True, True, False]
    store.close()


def test_a_reader_sees_only_the_samples_that_have_a_row(tmp_path: Path) -> None:
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


def test_a_part_of_a_store() -> None:
    store = MemoryStore(SPECS, 10)
    part = StoreSlice(store, 4, 6)
    fill(part)
    assert (part.full, store.full, store.has(torch.arange(4, 10))) == (True, False, True)
    assert equal(store.get(torch.tensor([4, 9])), values(SPECS, torch.tensor([0, 5])))
    assert check_all_that_is_there(part) == 6


def test_only_a_one_marks_a_sample(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, SPECS, 4, "a1")
    fill(store)
    store.close()
    (tmp_path / "a1" / "whole.bin").write_bytes(bytes([1, 0, 255, 1]))
    store = DiskStore(tmp_path, SPECS, 4, "a1")
    assert check_all_that_is_there(store) == 2
    store.close()


def test_a_store_that_can_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    fill(store, start=5)
    store.close()

    def refuse(path: Any, *args: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda *args: False)
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    assert not store.writable
    fill(store)
    assert check_all_that_is_there(store) == 5
    store.close()
    with pytest.raises(StoreError, match="Permission denied"):
        DiskStore(tmp_path, SPECS, 10, "b2")


def test_a_disk_that_is_full_shows_before_anything_is_stored(tmp_path: Path) -> None:
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
def test_blocks_are_taken_where_the_system_has_no_call_for_it(
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
    assert check_all_that_is_there(store) == 10
    store.close()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_fills_up_later_keeps_what_is_there(
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
    fill(store)  # does nothing, and says nothing
    assert check_all_that_is_there(store) == 4
    store.close()
    store = DiskStore(tmp_path, SPECS, 10, "a1")
    assert check_all_that_is_there(store) == 4
    store.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_memory_stays_flat() -> None:
    def own_memory() -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        return int(line.split()[1]) * 1024

    store = DiskStore(None, [Spec((1 << 18,), torch.float32)], 64)
    rows = torch.ones(1, 1 << 18)
    before = own_memory()
    for index in range(64):
        store.put(torch.tensor([index]), [rows])
    for index in range(64):
        assert store.get(torch.tensor([index]))[0].equal(rows)
    assert own_memory() - before < 64 << 18  # a quarter of what is stored
    store.close()


def test_a_store_made_anew_while_it_is_opened_is_not_read(tmp_path: Path) -> None:
    class Slow(DiskStore):
        def _mapped(self, number: int, spec: Spec, count: int) -> Tensor:
            rows = super()._mapped(number, spec, count)
            if number == 0:
                writing[0].delete()
                writing[0] = DiskStore(tmp_path, SPECS, 10, "a1")
                fill(writing[0])
            return rows

    writing = [DiskStore(tmp_path, SPECS, 10, "a1")]
    reading = Slow(tmp_path, SPECS, 10, "a1")
    assert check_all_that_is_there(reading) == 0
    reading.close()
    writing[0].close()


# What follows needs processes to kill. They are forked from one that does nothing else.


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
    """Fill a store, and be killed at the call number `last` of those that change the disk, half done if it can be."""
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
    def check() -> None:
        store = DiskStore(folder / "cache", SPECS, 6, "a1")
        assert store.writable
        (folder / "there").write_text(str(check_all_that_is_there(store)))
        fill(store)
        assert check_all_that_is_there(store) == 6
        store.close()
        assert sorted(os.listdir(folder / "cache")) == ["a1", "a1.lock"]

    counts = []
    status = int(signal.SIGKILL)
    while status == signal.SIGKILL:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        status = ended(forked(partial(fill_until, len(counts) + 1, folder / "cache")))
        assert ended(forked(check)) == 0, f"killed at call {len(counts) + 1}"
        counts.append(int((folder / "there").read_text()))
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
            check_all_that_is_there(store)
            for indices in order[: 200 if seed else 100].split(9):
                if not store.has(indices):
                    store.put(indices, values(SPECS, indices))
            if store.writable and not seed:
                os.kill(os.getpid(), signal.SIGKILL)  # and another takes over
            store.refresh()
        assert check_all_that_is_there(store) == 200
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
        assert check_all_that_is_there(second) == 5
        second.delete()
        assert (folder / "a1").exists()  # the first one's to delete
        second = DiskStore(folder, SPECS, 20, "a1")
    finally:
        os.kill(first, signal.SIGKILL)
        ended(first)
    second.refresh()
    assert second.writable
    assert check_all_that_is_there(second) == 5
    fill(second)
    assert check_all_that_is_there(second) == 20
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
    """Play all scenes in a process of their own; return what went wrong in which."""
    script = f"""
        import json, sys, traceback, types
        from pathlib import Path
        bare = sys.modules["finetune"] = types.ModuleType("finetune")  # its front door imports all there is
        bare.__path__ = [{str(Path(errors.__file__).parent)!r}]
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_store
        failures = {{}}
        for scene in test_store.SCENES:
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
