"""Reliability diagrams and histograms show the numbers of the interpretation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.interpret.calibration import Calibration
from tests.helpers.answers import interpreted, random_answers


@pytest.mark.parametrize(
    ("kind", "count", "confidence"),
    [
        ("classification", 4, "probability of the answer"),
        ("binary", 1, "probability of 1"),
        ("multilabel", 3, "probability of each label"),
    ],
)
def test_reliability(kind: str, count: int, confidence: str, tmp_path: Path) -> None:
    found = random_answers(kind, 100, count, 0)
    figure = found.plot_reliability(tmp_path / "plot.png")
    above, below = figure.axes
    filled = [row for row in found.reliability() if row.count]
    assert [bar.get_height() for bar in above.patches] == [row.accuracy for row in filled]
    assert [bar.get_x() for bar in above.patches] == [row.low for row in filled]
    assert [bar.get_height() for bar in below.patches] == [row.count for row in found.reliability()]
    assert [tuple(map(float, point)) for point in above.lines[1].get_xydata()] == [
        (row.confidence, row.accuracy) for row in filled
    ]
    assert f"{found.calibration_error:.4f}" in above.get_title("left")
    assert below.get_xlabel() == confidence
    assert (tmp_path / "plot.png").exists()


def test_scores(tmp_path: Path) -> None:
    found = random_answers("classification", 100, 4, 0)
    figure = found.plot_scores(tmp_path / "plot.png")
    for axes, (name, counts) in zip(figure.axes, found.score_histogram().counts.items(), strict=True):
        assert [bar.get_height() for bar in axes.patches] == list(counts)
        assert axes.get_title("left") == f"{name} ({sum(counts)})"
    assert (tmp_path / "plot.png").exists()


def test_the_threshold_of_two_classes_is_drawn() -> None:
    found = random_answers("binary", 100, 1, 0, Calibration(1.0, (0.3,)), classes=("no", "yes"))
    for axes in found.plot_scores().axes:
        assert [list(line.get_xdata()) for line in axes.lines] == [[0.3, 0.3]]
    assert [axes.get_title("left").split()[0] for axes in found.plot_scores().axes] == ["no", "yes"]


def test_counts_are_whole_numbers() -> None:
    found = random_answers("classification", 9, 3, 0)
    counts = [found.plot_reliability().axes[1], *found.plot_scores().axes]
    assert all(tick == round(tick) for axes in counts for tick in axes.get_yticks())


def test_a_group_without_samples_counts_from_zero() -> None:
    found = interpreted("classification", 9 * torch.eye(3), torch.arange(3))
    right, wrong = found.plot_scores().axes
    assert wrong.get_title("left") == "wrong (0)"
    assert [axes.get_ylim()[0] for axes in (right, wrong)] == [0, 0]
    assert {*wrong.get_yticks()} == {0, 1}
