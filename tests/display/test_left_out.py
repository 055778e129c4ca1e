from __future__ import annotations

import logging

import pytest

from finetune.display.left_out import left_out, parts_left_out


def test_parts_left_out_are_logged_and_collected_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "finetune"):
        left_out("before", "It is outside.")
        with parts_left_out() as parts:
            left_out("a", "It is 100% left out.")
            left_out("a", "It is left out again.")
            with parts_left_out() as inner:
                left_out("b", "It belongs to the inner context.")
        left_out("after", "It is outside.")
    assert (parts, inner) == (["a"], ["b"])
    assert len(caplog.messages) == 5
    assert "It is 100% left out." in caplog.messages
