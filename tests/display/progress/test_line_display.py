"""Lines where nothing can be redrawn: few, and never too few."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest

from finetune.display.lines import lines_shown, log
from finetune.display.progress.bar import Bar
from finetune.display.progress.line_display import LineDisplay


def times_of_signs(display: LineDisplay, bars: list[Bar], caplog: pytest.LogCaptureFixture, until: int) -> list[int]:
    """Return the seconds at which a display that is drawn every second says something."""
    found = []
    with caplog.at_level(logging.INFO, "finetune"):
        for second in range(until):
            caplog.clear()
            display.draw(bars, float(second))
            found += [second] * len(caplog.messages)
    return found


@pytest.fixture
def display() -> LineDisplay:
    made = LineDisplay()
    made._last = 0.0
    return made


def test_signs_of_life_become_rarer(display, caplog) -> None:
    fit = Bar("epoch 1/9", 1000, 1, patience=0.0, begun=0.0)
    signs = times_of_signs(display, [fit], caplog, 3 * 3600)
    assert signs[:6] == [30, 90, 210, 450, 930, 1530]
    assert {later - earlier for earlier, later in pairwise(signs[5:])} == {600}


def test_a_pass_is_announced_after_a_second(display, caplog) -> None:
    assert times_of_signs(display, [Bar("Checking", 10, 1, begun=0.0)], caplog, 100) == [1, 31, 91]


def test_a_pass_within_a_run_is_not_announced(display, caplog) -> None:
    bars = [Bar("epoch 1/9", 1000, 1, patience=0.0, begun=0.0), Bar("Saving", begun=0.0)]
    assert times_of_signs(display, bars, caplog, 30) == []


def test_a_line_postpones_the_next_sign(display, capsys) -> None:
    fit = Bar("epoch 1/9", 1000, 1, patience=0.0, begun=0.0)
    with lines_shown(display.show):
        display.draw([fit], 40.0)
        assert display._pause == 60.0
        log.info("epoch 1/9")
        begun = display._last
        display.draw([fit], begun + 29)
        assert len(capsys.readouterr().out.splitlines()) == 2
        display.draw([fit], begun + 31)
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_sign_tells_run_and_pass(display, caplog) -> None:
    fit = Bar("epoch 1/9, probe 1/2", 1000, 250, values=["loss 0.5", "lr 0.001"], end=130.0, patience=0.0, begun=0.0)
    with caplog.at_level(logging.INFO, "finetune"):
        display.draw([fit, Bar("Evaluating batches", 40, 10, begun=30.0)], 60.0)
    assert caplog.messages == [
        "epoch 1/9, probe 1/2: 250 of 1,000, 1:10 left, loss 0.5, lr 0.001; Evaluating batches: 10 of 40, 1:30 left"
    ]
