"""The plot of a regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.helpers.answers import interpreted, random_answers


def test_true_and_predicted_values_are_drawn(tmp_path: Path) -> None:
    found = random_answers("regression", 50, 2, 0, classes=("age", "size"))
    figure = found.plot_residuals(tmp_path / "plot.png")
    targets = found.predictions.targets
    assert targets is not None
    for place, name in enumerate(found.labels):
        left, right = figure.axes[2 * place : 2 * place + 2]
        expected = np.stack([targets[:, place], found.predictions.outputs[:, place]], 1)
        assert np.allclose(left.lines[1].get_xydata(), expected)
        assert left.get_title("left").startswith(f"{name}: mae {found.per_output[place].mae:.4f}")
        assert sum(bar.get_height() for bar in right.patches) == 50
        assert right.patches[0].get_x() <= float(found.residuals[:, place].min()) + 1e-5
    assert (tmp_path / "plot.png").exists()


def test_the_weakest_of_many_outputs_are_shown_and_said() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(50, 9, generator=generator)
    outputs = targets + torch.randn(50, 9, generator=generator) * torch.arange(9)
    targets[:, 0] = 1.0  # no R2
    found = interpreted("regression", outputs, targets)
    figure, scores = found.plot_residuals(), [row.r2 for row in found.per_output]
    names = [axes.get_title("left").partition(":")[0] for axes in figure.axes[::2]]
    assert names == ["0", *(str(place) for place in range(1, 9) if scores[place] in sorted(scores[1:])[:5])]
    assert figure.get_suptitle() == "The 6 weakest of 9 outputs"
