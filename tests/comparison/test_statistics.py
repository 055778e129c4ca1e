"""Intervals and tests, compared to SciPy and to textbook values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from finetune.comparison.statistics import half_width, holm, interval, paired_p_value

numbers = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12)


@given(st.lists(numbers, min_size=2, max_size=12), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_matches_scipy(values: list[float], level: float) -> None:
    half = half_width(values, level)
    assert half is not None
    if len({*values}) > 1:
        low, high = stats.t.interval(level, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
        assert half == pytest.approx((high - low) / 2)
    else:
        assert half == 0


def test_the_interval_matches_a_textbook() -> None:
    assert half_width([4.0, 6.0, 8.0]) == pytest.approx(4.303 * 2 / math.sqrt(3), rel=1e-3)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_fewer_than_two_values_have_no_interval(values: list[float]) -> None:
    assert half_width(values) is None
    assert paired_p_value(values, values) is None


@given(pairs)
def test_the_paired_test_matches_scipy(given_pairs: list[tuple[float, float]]) -> None:
    one, other = zip(*given_pairs, strict=True)
    p = paired_p_value(one, other)
    differences = {round(a - b, 6) for a, b in given_pairs}
    if len(differences) > 1:
        assert p == pytest.approx(stats.ttest_rel(one, other).pvalue)
    else:
        assert p == (1.0 if differences == {0} else None)
    assert p == paired_p_value(other, one)


def test_pairing_removes_the_common_spread() -> None:
    seeds = [0.1, 0.5, 0.9]
    assert paired_p_value(seeds, [0.2, 0.61, 1.0]) < 0.01  # type: ignore[operator]
    assert stats.ttest_ind(seeds, [0.2, 0.61, 1.0]).pvalue > 0.5


def test_the_correction_matches_a_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, None, 0.5]) == [0.04, None, 0.5]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_a_correction_keeps_the_order_and_never_lowers_a_p_value(p_values: list[float]) -> None:
    corrected = [p for p in holm(p_values) if p is not None]
    assert len(corrected) == len(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    by_p = sorted(zip(p_values, corrected, strict=True))
    assert [c for _, c in by_p] == sorted(corrected)
    assert len(p_values) != 1 or corrected == p_values


@pytest.mark.parametrize(
    ("values", "metric", "expected"),
    [
        ([0.5, 0.6667], "accuracy", (0.0, 1.0)),
        ([0.98, 0.99, 1.0], "f1", (0.96516, 1.0)),
        ([0.1, 0.2], "loss", (0.0, 0.78531)),
        ([-0.1, 0.2], "loss", (-1.85593, 1.95593)),  # a loss of one's own
        ([0.5, 0.9], "r2", (-1.84124, 1.0)),
        ([50.0, 60.0], "accuracy", (-8.53102, 118.53102)),  # another metric of that name
        ([0.5, 0.9], "mine", (-1.84124, 3.24124)),
        ([1.0, 1.0], "accuracy", (1.0, 1.0)),
    ],
)
def test_an_interval_ends_with_the_range_of_its_metric(
    values: list[float], metric: str, expected: tuple[float, float]
) -> None:
    assert interval(values, metric) == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.sampled_from(["accuracy", "auroc", "recall"]))
def test_the_interval_of_a_share_is_within_0_and_1(values: list[float], metric: str) -> None:
    low, high = interval(values, metric) or (0.0, 0.0)
    assert 0 <= low <= high <= 1
