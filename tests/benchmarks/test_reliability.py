"""The reliability benchmark: its children, its journal of a disk, and what it calls a fault."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("resource", reason="the benchmark forks processes with limits, as POSIX systems can")

from benchmarks.reliability import damage, kills, table
from benchmarks.reliability.__main__ import SUITES
from benchmarks.reliability.children import Child, Shared, in_child
from benchmarks.reliability.power import Journal, PowerCutError
from benchmarks.reliability.safeties import _SAFETIES
from finetune.files.durable import written


def row(suite: str, safety: str = "", case: str = "case", **counts: Any) -> dict[str, Any]:
    module = SUITES[suite]
    return {
        "key": [suite, safety, case, 0],
        "took": 1.0,
        **dict.fromkeys([*module.COUNTS, *module.FAULTS], 0),
        **counts,
    }


def test_a_child_returns_its_result_its_error_or_its_signal() -> None:
    assert in_child(lambda: [1, "a" * 100_000]).value == [1, "a" * 100_000]
    failed = in_child(lambda: int("x"))
    assert (failed.value, failed.error[:20], failed.code) == (None, "builtins.ValueError:", 1)
    assert in_child(lambda: os.kill(os.getpid(), signal.SIGTERM)).code == -signal.SIGTERM
    assert in_child(lambda: time.sleep(60), seconds=1).hung
    assert Child(lambda: time.sleep(60)).wait(0.1).hung


def test_a_child_has_no_more_memory_than_its_limit() -> None:
    assert in_child(lambda: len(bytes(300 << 20)), megabytes=100).error.startswith("builtins.MemoryError")
    allowed = in_child(lambda: len(b"a" * (50 << 20)), megabytes=100)
    assert allowed.value == 50 << 20
    assert 40 < allowed.megabytes < 100 or allowed.megabytes == 0  # where the system does not tell


def test_children_share_numbers() -> None:
    shared = Shared(2)
    in_child(lambda: shared.__setitem__(1, 7))
    assert (shared[0], shared[1]) == (0, 7)


def test_a_disk_is_sure_to_hold_what_was_synced(tmp_path: Path) -> None:
    """Of two versions of a file, the cut leaves one that is whole: the second once its writing has ended."""

    def disk(end: int) -> dict[str, bytes]:
        place, left = tmp_path / f"place{end}", tmp_path / f"left{end}"
        left.mkdir()

        def work() -> None:
            Journal(end, left).record(place)
            for content in (b"one", b"two"):
                with written(place / "f") as file:
                    file.write(content)

        assert "PowerCutError" in in_child(work).error
        return {path.name: path.read_bytes() for path in left.iterdir()}

    # Each write syncs the stage, renames it and syncs the folder.
    assert disk(0) == {}
    assert disk(1) in ({}, {"f": b"one"})
    assert disk(2) == disk(3) == {"f": b"one"}
    assert disk(4) in ({"f": b"one"}, {"f": b"two"})
    assert disk(5) == {"f": b"two"}
    assert issubclass(PowerCutError, BaseException)
    assert not issubclass(PowerCutError, Exception)  # which the library would handle


def test_a_fault_is_one_with_all_safeties_and_none_without_one() -> None:
    suites = {"power": SUITES["power"]}
    good = [row("power", cuts=5), row("power", "syncing", lost=1), row("power", "the sync of folders", unreadable=1)]
    assert table.faults(suites, good) == []
    assert len(table.faults(suites, [{**good[0], "lost": 1}, *good[1:]])) == 1
    assert table.faults(suites, [*good[:2], {**good[2], "unreadable": 0}]) == [
        "power: no fault is counted without the sync of folders"
    ]
    others = [row("damage", case="bit flips, torch.load", silent=72, other=True)]
    assert table.faults({"damage": SUITES["damage"]}, others) == []


def test_the_table_counts_cases_and_controls(tmp_path: Path) -> None:
    rows = [row("power", cuts=5), row("power", cuts=6), row("power", "syncing", cuts=7, lost=3)]
    text = table.table({"power": SUITES["power"]}, rows, "a processor")
    assert "**0 faults with all safeties in place.**" in text
    assert "| case | 11 | 0 | 0 |" in text
    assert "| *without* syncing | 7 | 0 | 3 |" in text


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_has_controls_whose_safety_exists(suite: str) -> None:
    for sample in (True, False):
        trials = list(SUITES[suite].trials(sample=sample))
        assert len(trials) == len(set(trials))
        used = {safety for safety, *_ in trials}
        assert {""} < used if sample else used == {"", *SUITES[suite].CONTROLS}
    assert set(SUITES[suite].CONTROLS) <= _SAFETIES.keys()


def test_a_killed_run_is_equal_and_one_without_the_state_of_its_optimizer_is_not(monkeypatch) -> None:
    monkeypatch.setattr(kills, "KILLS", 2)
    kept = kills.run("", "EarlyStopping, L2SP", random.Random(0))
    assert (kept["equal"], kept["unreadable"], kept["lost"], kept["stages"]) == (1, 0, 0, 0)
    assert kept["kills"] > 0
    lost = kills.run("the optimizer's state", "EarlyStopping, L2SP", random.Random(0))
    assert lost["unequal"] == 1


def test_flipped_bits_are_noticed_by_the_checksum_alone(monkeypatch) -> None:
    monkeypatch.setattr(damage, "_EACH", 20)
    assert damage.run("", "bit flips, finetune", random.Random(0))["refused"] == 20
    assert damage.run("the checksum", "bit flips, finetune", random.Random(0))["silent"] > 0
