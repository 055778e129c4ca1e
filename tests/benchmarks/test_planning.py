"""The planning benchmark: the interval of a median, and the verdict on each case."""

from __future__ import annotations

import pytest

from benchmarks.planning import cases, interval, table


def test_the_interval_of_a_median_covers_the_central_ranks() -> None:
    assert interval(range(100)) == (40, 60)
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) == (1.0, 5.0)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [([1.0] * 5, "yes"), ([1.2] * 5, "**no**"), ([0.9, 0.9, 1.1, 1.1, 1.1], "undecided")],
)
def test_a_case_fails_only_if_its_whole_interval_is_above_the_limit(ratios: list[float], verdict: str) -> None:
    case = cases()[0]
    row = table({case: [(1.0, ratio) for ratio in ratios]}, threads=1).splitlines()[-1]
    assert row.startswith(f"| {case.name} | {case.samples} | 5 | 1.00 |")
    assert row.endswith(f"| {verdict} |")
