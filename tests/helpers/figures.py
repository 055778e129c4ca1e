"""Where the parts of a drawn figure are, in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def legends(figure: Figure) -> list[Any]:
    """Return the legends of a figure and of its axes."""
    return [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend() is not None)]


def shown_texts(figure: Figure) -> list[Text]:
    """Return the texts that are drawn, without those of ticks out of the limits."""
    figure.draw_without_rendering()
    hidden = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _hidden_labels(axis)}
    texts = figure.findobj(Text)
    return [text for text in texts if text.get_text().strip() and text.get_visible() and id(text) not in hidden]


def _hidden_labels(axis: Axis) -> Iterator[Text]:
    low, high = sorted(axis.get_view_interval())
    labels = {id(label) for label in axis.get_ticklabels(which="both")}
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        for label in (tick.label1, tick.label2):
            if id(label) not in labels or not low <= tick.get_loc() <= high:
                yield label


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of texts that are drawn over each other."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown_texts(figure)]
    return [
        (name, other)
        for place, (name, box) in enumerate(boxes)
        for other, second in boxes[:place]
        if _area(box, second) > 1
    ]


def cut_texts(figure: Figure) -> list[str]:
    """Return the texts that reach beyond the figure."""
    width, height = figure.bbox.size
    return [
        text.get_text()
        for text in shown_texts(figure)
        for box in [text.get_window_extent()]
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]


def points_under(figure: Figure, boxes: list[Bbox]) -> list[tuple[float, float]]:
    """Return the points of lines that lie in one of the boxes."""
    points = [line.get_transform().transform(line.get_xydata()) for axes in figure.axes for line in axes.lines]
    every = np.concatenate(points) if points else np.zeros((0, 2))
    return [(x, y) for x, y in every if any(box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1 for box in boxes)]


def points_under_legends(figure: Figure) -> list[tuple[float, float]]:
    """Return the points of lines that a legend covers."""
    figure.draw_without_rendering()
    return points_under(figure, [legend.get_window_extent() for legend in legends(figure)])


def _area(box: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(box, other)
    return 0.0 if common is None else common.width * common.height
