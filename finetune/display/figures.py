"""Matplotlib figures that a notebook shows without `%matplotlib inline`."""

from __future__ import annotations

import functools
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ArgumentError
from finetune.files.durable import written
from finetune.naming.paths import local_path

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


def save(figure: Figure, path: str | Path) -> None:
    """Save a figure. The suffix of the path sets the format, and is `.png` if there is none.

    Raises:
        ArgumentError: If the file cannot be written, or the suffix is no format. An existing file is unchanged.

    Example:
        >>> save(new_figure(4, 3), "chart.svg")
        >>> Path("chart.svg").read_bytes()[:5]
        b'<?xml'
    """
    path = local_path(path)
    path = path if path.suffix else path.with_suffix(".png")
    try:
        with written(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=120)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"The figure cannot be written to {path}: {error}. Expected the path of a file.") from error


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
