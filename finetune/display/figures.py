"""Matplotlib figures that a notebook shows without `%matplotlib inline`."""

from __future__ import annotations

import functools
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which shows itself in a notebook.

    Example:
        >>> new_figure(4, 3)._repr_png_()[1:4]
        b'PNG'
    """
    figure: Figure = _figure_class()(figsize=(width, height), layout="constrained")
    return figure


@functools.cache
def _figure_class() -> Any:
    from matplotlib.figure import Figure  # takes a while, so only on use

    class ShownFigure(Figure):
        """A figure without pyplot, which needs no window and is freed with its last reference."""

        def _repr_png_(self) -> bytes:
            page = BytesIO()
            self.savefig(page, format="png", dpi=100)
            return page.getvalue()

    return ShownFigure
