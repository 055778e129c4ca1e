"""The table, its statistics and notes, and the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune import Comparison
from finetune.comparison.comparison import RunResult
from finetune.comparison.statistics import paired_p_value


def row(strategy: str, seed: int, value: float | None, **more: Any) -> RunResult:
    error = {"error": "RuntimeError: why"} if value is None else {}
    known = {"monitor": "accuracy", "images_per_second": 1000.0, "seconds": 2.0, "checkpoint_size": 45_000_000}
    return RunResult("net", strategy, seed, value=value, **{**known, **error, **more})


def test_the_table_shows_intervals_and_p_values() -> None:
    values = {"a": [0.5, 0.6, 0.7], "b": [0.61, 0.7, 0.81], "c": [0.6, 0.72, 0.8]}
    rows = [row(name, seed, one[seed], trained_parameters=1234) for seed in range(3) for name, one in values.items()]
    comparison = Comparison([*rows, row("d", 0, None), row("a", 3, None)], budget=7)

    a, b, c = comparison.entries
    assert comparison.best is b
    assert (a.mean, a.interval) == (pytest.approx(0.6), pytest.approx((0.6 - 0.2484, 0.6 + 0.2484), abs=1e-3))
    p_values = [paired_p_value(values[name], values["b"]) for name in "ac"]
    assert [a.p_value, b.p_value, c.p_value] == [pytest.approx(2 * p_values[0]), None, pytest.approx(p_values[1])]
    said = str(comparison)
    lines = {line.split()[0]: line for line in said.splitlines() if line and line.split()[0] in "abc"}
    assert "0.600 ± 0.248" in lines["a"]
    assert " best " in lines["b"]
    assert f" {c.p_value:.3f} " in lines["c"]
    assert all(cell in lines["a"] for cell in (" 1,000 ", " 2.0 ", " 1,234 ", "45 MB"))
    assert "on validation data after epoch 7, mean of 4 seeds ± 95 % interval" in said
    assert "Holm-corrected for 2 tests" in said
    assert "Failed: d, seed 0: RuntimeError: why" in said
    assert "Failed: a, seed 3: RuntimeError: why" in said
    markdown = comparison.to_markdown()
    assert "| a | 0.600 ± 0.248 |" in markdown
    assert markdown.splitlines()[1].startswith("| --- | ---: |")
    assert "Failed: d, seed 0" in markdown


def test_one_seed_has_no_interval_and_no_test() -> None:
    comparison = Comparison([row("a", 0, 0.5), row("b", 0, 0.4)], budget=1)

    assert all(entry.interval is None and entry.p_value is None for entry in comparison.entries)
    assert comparison.best is comparison.entries[0]
    assert "±" not in str(comparison)
    assert "Holm" not in str(comparison)


def test_the_best_entry_has_the_most_seeds() -> None:
    comparison = Comparison([row("a", 0, 0.5), row("a", 1, 0.6), row("b", 0, 0.9), row("b", 1, None)], budget=1)

    assert comparison.best is comparison.entries[0]
    assert comparison.entries[1].p_value is None  # there is one pair only


def test_failures_alone_still_make_a_table() -> None:
    comparison = Comparison([row("a", 0, None)], budget=1)

    assert comparison.best is None
    assert not comparison.entries
    assert "Failed: a, seed 0: RuntimeError: why" in str(comparison)
    assert comparison.plot() is not None


def test_the_plot_shows_every_entry_and_run(tmp_path: Path) -> None:
    values = {"a": [0.5, 0.6], "b": [0.6, 0.7]}
    comparison = Comparison([row(name, s, v) for name, one in values.items() for s, v in enumerate(one)], budget=1)

    figure = comparison.plot(tmp_path / "plot.png")

    compared_axes, speed = figure.axes
    assert [label.get_text() for label in compared_axes.get_yticklabels()] == ["a", "b"]
    dots = [sorted(map(float, line.get_xdata())) for line in compared_axes.lines if line.get_marker() == "."]
    assert dots == [[0.5, 0.6], [0.6, 0.7]]
    assert [bar.get_width() for bar in speed.patches] == [1000.0, 1000.0]
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"


def test_an_interval_stays_within_the_range_of_the_metric() -> None:
    comparison = Comparison(
        [RunResult("net", "a", seed, "accuracy", value) for seed, value in enumerate((0.5, 0.6667))], 1
    )

    assert "0.583 (0.000 to 1.000)" in str(comparison)
    low, high = comparison.plot().axes[0].get_xlim()
    assert -0.05 < low < high < 1.05
    assert "0.583 (0.000 to 1.000)" in comparison._repr_html_()
