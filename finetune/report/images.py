"""Images within a page: plots in both themes, and small copies of samples."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image as Pictures

from finetune.display.figures import to_svg
from finetune.display.html import data_uri
from finetune.report.blocks import Image, Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PIXELS_PER_INCH = 96  # of CSS
_SHARP = 2  # pixels of a bitmap per CSS pixel
_MOST_BYTES = 150_000  # of an SVG file; beyond, as for thousands of points, a bitmap is smaller and faster to draw
_COLORS = 256


def plot(draw: Callable[..., Figure], alt: str, caption: str) -> Plot:
    """Return a plot in both themes.

    Args:
        draw: Function of `theme` that returns a figure, such as `History.plot`.
        alt: Content of the plot in words.
        caption: Explanation for all readers.

    Example:
        >>> from finetune.display.figures import new_figure
        >>> plot(lambda theme: new_figure(4, 3, theme), "Nothing.", "").light.width
        384
    """
    return Plot(figure_image(draw(theme="light")), figure_image(draw(theme="dark")), alt, caption)


def figure_image(figure: Figure) -> Image:
    """Return a figure as an SVG file, or as a PNG file if it has too many parts."""
    width, height = (round(_PIXELS_PER_INCH * side) for side in figure.get_size_inches())
    content = to_svg(figure)
    if len(content) <= _MOST_BYTES:
        return Image(data_uri(content, "svg+xml"), width, height)
    page = BytesIO()
    figure.set_layout_engine("none")  # it has been laid out
    figure.savefig(page, format="png", dpi=_SHARP * _PIXELS_PER_INCH)
    few = Pictures.open(page).convert("RGB").quantize(_COLORS, dither=Pictures.Dither.NONE)
    return Image(data_uri(_saved(few, "PNG")), width, height)


def sample_image(picture: Pictures.Image, side: int = 224) -> Image:
    """Return a small copy of a picture, as the smaller one of a PNG and a JPEG file.

    Args:
        picture: The picture.
        side: Length of the longer side of the copy in pixels, at most.

    Example:
        >>> sample_image(Pictures.new("RGB", (448, 224))).height
        112
    """
    small = picture.copy()
    small.thumbnail((side, side))
    files = {"png": _saved(small, "PNG"), "jpeg": _saved(small, "JPEG")}
    kind = min(files, key=lambda name: len(files[name]))
    return Image(data_uri(files[kind], kind), *small.size)


def _saved(picture: Pictures.Image, form: str) -> bytes:
    page = BytesIO()
    picture.save(page, form, quality=85, optimize=True)
    return page.getvalue()
