"""Rows print as a table."""

from __future__ import annotations

import math

from finetune.interpret.rows import ClassScores, ConfusedPair, JudgedSample, Rows


def test_a_table_is_aligned_and_marks_undefined_numbers() -> None:
    rows = Rows([ClassScores("cat", 1.0, math.nan, 0.25, 10), ClassScores("a hare", 0.5, 0.5, math.nan, 2)])
    assert str(rows).splitlines() == [
        "name    precision  recall      f1  support",
        "cat        1.0000       -  0.2500       10",
        "a hare     0.5000  0.5000       -        2",
    ]
    assert rows._repr_html_().count("<td") == 10
    assert rows.to_dicts()[1]["support"] == 2


def test_a_long_table_says_how_many_more_there_are() -> None:
    rows = Rows(ConfusedPair("a", "b", count, 0.5) for count in range(50))
    assert len(rows) == 50
    assert str(rows).splitlines()[-1] == "... and 30 more"
    assert len(str(rows).splitlines()) == 22
    assert "... and 30 more" in rows._repr_html_()
    assert str(rows[:20]).count("more") == 0
    assert rows[:2] == Rows([ConfusedPair("a", "b", 0, 0.5), ConfusedPair("a", "b", 1, 0.5)])


def test_no_rows() -> None:
    assert str(Rows()) == "none"
    assert list(Rows()) == []
    assert "<table" in Rows()._repr_html_()


def test_names_cannot_control_a_terminal_or_a_page() -> None:
    row = JudgedSample("a\x1b[2J.png", 0, "<b>", ("x", "y"), {"<b>": 0.5}, 1.0)
    assert "\x1b" not in str(Rows([row]))
    assert "&lt;b&gt;" in Rows([row])._repr_html_()
    assert "<b>" not in Rows([row])._repr_html_()
    assert "x, y" in str(Rows([row]))
