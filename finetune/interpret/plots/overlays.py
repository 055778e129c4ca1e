"""A sheet of images with their heatmaps laid over them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.display import figures
from finetune.interpret.plots.names import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from finetune.interpret.heatmaps import Heatmaps

_COLUMNS, _MOST = 6, 24


def draw_overlays(found: Heatmaps, path: str | Path | None = None, theme: str | None = None) -> Figure:
    """Draw the images with their heatmaps, the first of many.

    Args:
        found: The heatmaps.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `figures.drawing`.
    """
    count = min(_MOST, len(found))
    columns = max(1, min(_COLUMNS, count))
    rows = max(1, -(-count // columns))
    height, width = found.maps.shape[1:]
    tall = min(2.0, 2.0 * height / width) + 0.35
    with figures.drawing(2.1 * columns + 0.3, tall * rows + 0.5, path, theme) as (figure, _):
        grid = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for axes in grid:
            axes.set_axis_off()
        for index, axes in enumerate(grid[:count]):
            axes.imshow(found.overlay(index))
            axes.set_title(shown(found.caption(index)), fontsize=9, loc="left", fontweight="normal")
        more = f", the first {count} of {len(found):,}" if count < len(found) else ""
        figure.suptitle(f"Evidence for the answer{more}")
    return figure
