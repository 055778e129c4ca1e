"""The time that a run still takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.training.progress.pace import Pace


@given(
    seconds=st.floats(0.01, 100),
    evaluation=st.floats(0, 100),
    steps=st.integers(1, 50),
    epochs=st.integers(2, 6),
    data=st.data(),
)
def test_a_steady_pace_is_found_exactly(seconds, evaluation, steps, epochs, data) -> None:
    pace, now, whole = Pace(), 0.0, steps * seconds + evaluation
    epoch = data.draw(st.integers(1, epochs - 1))
    for _ in range(epoch):
        pace.begin_epoch(now, 0)
        pace.end_training(now + steps * seconds)
        now += whole
    pace.begin_epoch(now, 0)
    step = data.draw(st.integers(0, steps))

    left = pace.seconds_left(now + step * seconds, step, steps, epochs - epoch - 1)

    assert left == pytest.approx((epochs - epoch) * whole - step * seconds)


def test_nothing_is_known_before_the_first_update_or_of_a_stream() -> None:
    pace = Pace()
    pace.begin_epoch(0.0, 0)
    assert pace.seconds_left(1.0, 0, 10, 3) is None
    assert pace.seconds_left(1.0, 5, None, 3) is None


def test_the_slow_first_batch_of_an_epoch_does_not_change_the_estimate() -> None:
    pace = Pace()
    pace.begin_epoch(0.0, 0)
    pace.end_training(100.0)
    pace.begin_epoch(100.0, 0)
    assert pace.seconds_left(110.0, 1, 100, 0) == pytest.approx(99)
    assert pace.seconds_left(110.0, 50, 100, 0) == pytest.approx(10)


def test_a_resumed_epoch_counts_its_own_updates() -> None:
    pace = Pace()
    pace.begin_epoch(0.0, 30)
    assert pace.seconds_left(5.0, 35, 40, 0) == pytest.approx(5)
    pace.end_training(10.0)
    assert pace.seconds_left(10.0, 40, 40, 1) == pytest.approx(40)
