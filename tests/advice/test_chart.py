"""The boundaries of the quadrants, and the chart of them."""

from __future__ import annotations

import pytest

from finetune.advice.chart import MUCH, NEAR, QUADRANTS, draw, quadrant
from finetune.advice.evidence import Evidence
from tests.helpers.figures import cut_texts, overlapping_texts, points_under


def test_the_boundaries_separate_the_quadrants() -> None:
    names = [quadrant(MUCH + much, NEAR + near).name for much in (-0.1, 0) for near in (-0.01, 0)]

    assert names == [each.name for each in QUADRANTS]
    assert names == [
        f"{size} samples per class, {place}" for size in ("fewer than 8", "8 or more") for place in ("far", "near")
    ]


def evidence(probe: float, size: int) -> Evidence:
    return Evidence(10 * size, 10 * size, (size,) * 10, 0.5, 0.5, 0.5, probe, 0.03, (), 0.01, None)


@pytest.mark.no_cover
@pytest.mark.parametrize("size", [1, 4, 8, 9, 10**6])
@pytest.mark.parametrize("probe", [0.0, 0.55, 1.0])
def test_no_text_lies_over_another_or_over_the_data(probe: float, size: int) -> None:
    measured = evidence(probe, size)
    found = quadrant(measured.samples_per_class, measured.nearness)
    figure = draw(measured, "lp_ft (confidence 83 %)", found.name)

    assert overlapping_texts(figure) == []
    assert cut_texts(figure) == []
    [axes] = figure.axes
    boxes = [text.get_window_extent() for text in (*axes.texts, axes._left_title)]
    [data] = [line for line in axes.lines if line.get_marker() == "o"]
    [(x, y)] = axes.transData.transform(data.get_xydata())
    assert 0 <= data.get_xdata()[0] <= 1
    assert not any(box.x0 < x < box.x1 and box.y0 - 4 < y < box.y1 + 4 for box in boxes)
    assert points_under(figure, [legend.get_window_extent() for legend in figure.legends]) == []
    [shaded] = axes.patches
    assert shaded.get_window_extent().padded(1).contains(x, y)
    assert [text.get_fontweight() for text in axes.texts] == [
        "bold" if each is found else "normal" for each in QUADRANTS
    ]


def test_the_interval_stays_on_the_chart() -> None:
    axes = draw(evidence(0.99, 1), "title").axes[0]
    ends = [x for bars in axes.collections for segment in bars.get_segments() for x, _ in segment]
    assert 0 <= min(ends) < max(ends) <= 1
    assert not axes.patches  # no quadrant is advised
