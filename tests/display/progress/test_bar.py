"""Work under way, in numbers."""

from __future__ import annotations

import pytest

from finetune.display.progress.bar import Bar, clock, visible


@pytest.mark.parametrize(
    ("bar", "shown"),
    [
        (Bar("x", 40, 10, begun=0.0), "0:15 left"),
        (Bar("x", 40, 0, begun=0.0), ""),
        (Bar("x", 40, 45, begun=0.0), "0:00 left"),  # longer than announced
        (Bar("x", begun=0.0), "0:05"),
        (Bar("x", done=7, begun=0.0), "0:05"),
        (Bar("x", 40, 10, end=65.0), "1:00 left"),
        (Bar("x", 40, 10, end=3.0), "0:00 left"),
        (Bar("x", 40, 10, end=65.0, at_least=True), "1:00+ left"),
        (Bar("x", 40, 10, by_items=False, begun=0.0), ""),
        (Bar("x", by_items=False, begun=0.0), ""),
    ],
)
def test_the_time_of_a_bar(bar, shown) -> None:
    assert bar.time(now=5.0) == shown


@pytest.mark.parametrize(
    ("total", "done", "shown"),
    [
        (None, 0, ""),
        (None, 1200, "1,200"),
        (12, 3, " 3/12"),
        (12, 20, "12/12"),
        (1200, 40, "   40/1,200"),
        (0, 0, "0/0"),
    ],
)
def test_the_count_of_a_bar(total, done, shown) -> None:
    assert Bar("x", total, done).count() == shown


def test_a_clock_carries_over() -> None:
    assert [clock(seconds) for seconds in (59.4, 59.6, 3599.6)] == ["0:59", "1:00", "1:00:00"]


def test_what_has_lasted_is_visible() -> None:
    fit = Bar("fit", patience=0.0, begun=10.0)
    save, sync = Bar("save", begun=10.0), Bar("sync", begun=10.5)
    assert visible([fit, save, sync], now=10.1) == [fit]
    assert visible([fit, save, sync], now=11.2) == [fit, save]
    assert visible([fit, save, sync], now=12.0) == [fit, sync]
    assert visible([save], now=12.0) == [save]
    assert visible([], now=12.0) == []
