"""The plot of curves shows every label, or the weakest ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from tests.helpers.answers import interpreted, random_answers


def test_one_curve_for_two_classes(tmp_path: Path) -> None:
    found = random_answers("binary", 100, 1, 0, classes=("no", "yes"))
    figure = found.plot_curves(tmp_path / "plot.png")
    (roc,), (precision_recall,) = found.roc_curves, found.precision_recall_curves
    left, right = figure.axes
    assert np.allclose(left.lines[1].get_xydata(), np.stack([roc.false_positive_rate, roc.true_positive_rate], 1))
    assert np.allclose(right.lines[0].get_xydata(), np.stack([precision_recall.recall, precision_recall.precision], 1))
    assert right.lines[1].get_ydata()[0] == precision_recall.positives / 100
    assert left.get_title("left") == f"yes: area {roc.area:.3f}"
    assert (tmp_path / "plot.png").exists()


def test_the_weakest_of_many_labels_are_shown_and_said() -> None:
    found = random_answers("multilabel", 100, 30, 0, classes=[f"label {place}" for place in range(30)])
    figure = found.plot_curves()
    (legend,) = figure.legends
    weakest = sorted(found.precision_recall_curves, key=lambda curve: curve.area)[:6]
    assert [text.get_text().partition(" (")[0] for text in legend.texts] == [curve.label for curve in weakest]
    assert figure.get_suptitle() == "The 6 weakest of 30 labels"


def test_labels_without_a_curve_are_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(40, 3, generator=generator)
    targets = torch.stack([outputs[:, 0] > 0, torch.zeros(40), torch.ones(40)], 1).float()
    found = interpreted("multilabel", outputs, targets)
    assert [math.isnan(curve.area) for curve in found.roc_curves] == [False, True, True]
    assert [math.isnan(curve.area) for curve in found.precision_recall_curves] == [False, True, False]
    figure = found.plot_curves()
    assert figure.get_suptitle() == "2 of 3 labels have no curve, as all or no samples have them"
    nothing = interpreted("multilabel", outputs, torch.zeros(40, 3)).plot_curves()
    assert nothing.get_suptitle().startswith("3 of 3")
