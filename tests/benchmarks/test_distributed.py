"""The benchmark of several processes: what it calls a fault, and its report."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.distributed.__main__ import SUITES, report
from benchmarks.distributed.training import SETUPS, End, difference, train


def test_ends_differ_by_their_largest_number() -> None:
    end = End([1.0, 2.0], [3.0], [])
    assert difference(end, End([1.0, 2.5], [3.25], [])) == 0.5
    assert difference(end, End([1.0], [3.0], [])) == float("inf")


def test_a_run_is_the_same_twice_and_another_with_other_samples() -> None:
    one, again, other = (train(SETUPS["EMA, L2SP"], samples, 1, False) for samples in (13, 13, 24))
    assert difference(one, again) == 0
    assert difference(one, other) > 0.01


_GOOD: dict[str, dict[str, Any]] = {
    "equality": {"key": ["equality", "auto", "lp_ft", "2"], "differences": [0.0, 1e-7], "errors": []},
    "kills": {
        "key": ["kills", "auto", "lp_ft", "3", "0"], "killed": True, "saved": True, "said": "DistributedError: ended",
        "seconds": 1.0, "errors": [], "difference": 1e-7,
    },
    "traffic": {"key": ["traffic", "head", "1"], "gradients": 8, "others": 20, "needed": 8, "errors": []},
    "throughput": {"key": ["throughput", "head"], "one": 10.0, "two": 9.0, "ratio": 0.9, "errors": []},
}  # fmt: skip


@pytest.mark.parametrize(
    ("suite", "change"),
    [
        ("equality", {"differences": [0.0, 1e-3]}),
        ("equality", {"errors": ["ValueError"]}),
        ("kills", {"difference": 1e-3}),
        ("kills", {"said": "RuntimeError: gloo"}),
        ("traffic", {"gradients": 16}),
        ("traffic", {"others": 10_000}),
    ],
)
def test_a_fault_is_counted(suite: str, change: dict[str, Any]) -> None:
    good = _GOOD[suite]
    assert not SUITES[suite].wrong(good)
    assert SUITES[suite].wrong({**good, **change})


def test_report() -> None:
    rows = [{**row, "took": 30.0} for row in _GOOD.values()]
    text = report(rows)
    assert "**0 faults in 4 trials.**" in text
    assert "| lp_ft | copies | 1e-07 |" in text
    assert "| 3 processes | 1 | 1 | 1 | 1 | 1.0 |" in text
    assert "| head | 1 | 8 | 8 | 20 |" in text
    assert "| head | 10 | 9 | 0.90 |" in text
