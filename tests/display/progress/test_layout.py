"""The rows of a live display at every width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from finetune.display.progress.bar import Bar
from finetune.display.progress.layout import Row, columns, drawn, rows_of

FIT = Row("epoch 3/5, linear_probe 1/2", 0.6, "24/40  0:12+ left")
VALUES = Row("Training", None, "", ("loss 0.5123", "lr 0.001", "best val_accuracy 0.9312"))
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "M", "Zl", "Zp"]), min_size=1, max_size=60)
ROWS = st.builds(
    Row, WORDS, st.none() | st.floats(0, 1), st.just("") | st.just("1,234/9,999  1:02:03+ left")
) | st.builds(Row, WORDS, st.none(), st.just(""), st.lists(WORDS, min_size=1, max_size=4).map(tuple))


def lines(rows: list[Row], width: int) -> list[str]:
    """Return the rows as they look."""
    placed = columns(rows, width)
    found = []
    for row, (label, bar, right) in zip(rows, placed, strict=True):
        middle = "" if not bar or row.values else "  " + ("".join(drawn(row.fraction or 0.0, bar)))
        found.append(f"{label}{middle}  {right}".rstrip())
    return found


def test_at_80_columns_everything_is_shown() -> None:
    assert lines([FIT, VALUES], 80) == [
        "epoch 3/5, linear_probe 1/2  ━━━━━━━━━━━━━━━━━────────────  24/40  0:12+ left",
        "Training                     loss 0.5123  lr 0.001  best val_accuracy 0.9312",
    ]


def test_at_50_columns_the_bar_is_left_out() -> None:
    assert lines([FIT, VALUES], 50) == [
        "epoch 3/5, linear_probe 1/2  24/40  0:12+ left",
        "Training  loss 0.5123  lr 0.001",
    ]


def test_at_40_columns_the_label_is_cut() -> None:
    assert lines([FIT, VALUES], 40) == ["epoch 3/5, linear_pr…  24/40  0:12+ left", "Training  loss 0.5123  lr 0.001"]


@given(st.lists(ROWS, min_size=1, max_size=2), st.integers(40, 200))
def test_no_line_is_wider_than_the_display(rows, width) -> None:
    assert all(cell_len(line) <= width for line in lines(rows, width))


@given(st.floats(0, 1), st.integers(1, 40), st.booleans())
def test_a_bar_has_its_width(fraction, width, ascii_only) -> None:
    done, remaining = drawn(fraction, width, ascii_only=ascii_only)
    assert len(done) + len(remaining) == width
    assert abs(len(done) - fraction * width) <= 1
    assert not ascii_only or (done + remaining).isascii()


@pytest.mark.parametrize(("age", "second"), [(0.5, "Training"), (2.0, "Evaluating batches")])
def test_the_second_row_is_the_pass_under_way_or_the_part_of_the_run(age, second) -> None:
    fit = Bar("epoch 1/2", 40, 40, doing="Training", values=["loss 0.5"], patience=0.0, begun=0.0)
    found = rows_of([fit, Bar("Evaluating batches", 20, 5, begun=10.0)], now=10.0 + age)
    assert [row.label for row in found] == ["epoch 1/2", second]
