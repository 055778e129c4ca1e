"""Matplotlib figures in one look, light or dark, that a notebook shows without `%matplotlib inline`."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from finetune.errors import ArgumentError, one_of
from finetune.files.durable import check_writable, written
from finetune.naming.paths import local_path

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """Colors of a figure. All differ in lightness, and to people who see fewer colors (Okabe and Ito 2008).

    Attributes:
        background: Color behind everything.
        text: Color of titles and names.
        faint: Color of labels, ticks and secondary marks.
        grid: Color of grid lines.
        band: Color of shaded areas.
        colors: Colors of data. The first is that of training, the second that of validation and of the best.
        ramp: Part of the color map viridis that stands out from the background.
    """

    background: str
    text: str
    faint: str
    grid: str
    band: str
    colors: tuple[str, ...]
    ramp: tuple[float, float]

    def shades(self, count: int) -> list[str]:
        """Return colors for values in an order, such as stages by depth.

        Example:
            >>> THEMES["light"].shades(2)
            ['#440154', '#1f978b']
        """
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        low, high = self.ramp
        return [to_hex(colormaps["viridis"](low + (high - low) * place / max(1, count - 1))) for place in range(count)]


THEMES = {
    "light": Look(
        background="#ffffff",
        text="#24292f",
        faint="#59636e",
        grid="#e4e7eb",
        band="#f1f3f5",
        colors=("#0072b2", "#d55e00", "#00855f", "#a14a86", "#8a6d00", "#50555b"),
        ramp=(0.0, 0.53),
    ),
    "dark": Look(
        background="#14171c",
        text="#e6e9ed",
        faint="#a3abb5",
        grid="#2b3038",
        band="#1e232a",
        colors=("#56b4e9", "#f0a13a", "#2cc295", "#dd93bd", "#f0e442", "#b9bec5"),
        ramp=(0.4, 1.0),
    ),
}

# Fonts of Korean, Chinese and Japanese on Linux, macOS and Windows, for letters that matplotlib's own font lacks.
_FONTS = (
    "Noto Sans CJK KR", "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans", "WenQuanYi Zen Hei", "NanumGothic",
    "Apple SD Gothic Neo", "PingFang SC", "Hiragino Sans", "Malgun Gothic", "Microsoft YaHei", "Yu Gothic",
)  # fmt: skip

# The context of rc parameters belongs to the whole process.
_RC = RLock()


def new_figure(width: float, height: float, theme: str | None = None) -> Figure:
    """Return an empty figure of a size in inches, which shows itself in a notebook.

    Args:
        width: Width in inches.
        height: Height in inches.
        theme: `"light"`, `"dark"`, or None for dark if matplotlib's own background is, as in a dark style.

    Example:
        >>> new_figure(4, 3)._repr_png_()[1:4]
        b'PNG'
    """
    look = _look(theme)
    with _rc(look):
        figure: Figure = _figure_class()(look, figsize=(width, height), layout="constrained")
    return figure


@contextmanager
def drawing(
    width: float, height: float, path: str | Path | None = None, theme: str | None = None
) -> Iterator[tuple[Figure, Look]]:
    """Yield an empty figure to draw on within the context, with its look, and save it on exit.

    Args:
        width: Width in inches.
        height: Height in inches.
        path: Path to save the figure to, as by `save`; None to save nothing.
        theme: As in `new_figure`.

    Example:
        >>> with drawing(4, 3, theme="dark") as (figure, look):
        ...     line = figure.subplots().plot([1, 2], color=look.colors[0])
        >>> figure.get_facecolor()[:3] < (0.1, 0.1, 0.2)
        True
    """
    figure, look = new_figure(width, height, theme), _look(theme)
    with _rc(look):
        yield figure, look
    if path is not None:
        save(figure, path)


def save(figure: Figure, path: str | Path) -> None:
    """Save a figure. The suffix of the path sets the format, and is `.png` if there is none.

    Raises:
        ArgumentError: If the file cannot be written, or the suffix is no format. An existing file is unchanged.

    Example:
        >>> save(new_figure(4, 3), "chart.svg")
        >>> Path("chart.svg").read_bytes()[:5]
        b'<?xml'
    """
    path = _with_suffix(path)
    with _failure_explained(path), written(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=120)


def figure_path(path: str | Path) -> Path:
    """Return the path that a figure will be saved to, before time is spent on it.

    Raises:
        ArgumentError: If the file cannot be written, or the suffix is no format.

    Example:
        >>> figure_path("charts/losses").name
        'losses.png'
    """
    from matplotlib.backend_bases import FigureCanvasBase

    path = _with_suffix(path)
    with _failure_explained(path):
        check_writable(path)
    one_of("format", path.suffix, [f".{name}" for name in FigureCanvasBase.get_supported_filetypes()])
    return path


def _with_suffix(path: str | Path) -> Path:
    path = local_path(path)
    return path if path.suffix else path.with_suffix(".png")


@contextmanager
def _failure_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ArgumentError(f"The figure cannot be written to {path}: {error}. Expected the path of a file.") from error


def to_svg(figure: Figure) -> bytes:
    """Return a figure as an SVG file, the same one for the same figure.

    Example:
        >>> to_svg(new_figure(4, 3)) == to_svg(new_figure(4, 3))
        True
    """
    import matplotlib

    page = BytesIO()
    with _RC, matplotlib.rc_context({"svg.hashsalt": "finetune"}):
        figure.savefig(page, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return page.getvalue()


def limits(values: Iterable[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> tuple[float, float] | None:
    """Return the ends of an axis for values, or None if no value is finite.

    A margin is left around the values, but hardly any beyond the bounds. Equal values get a range of their own.

    Args:
        values: Values to draw.
        bounds: Range of possible values; ignored if a value is outside.

    Example:
        >>> limits([0.5, 1.0], (0.0, 1.0))
        (0.46, 1.015)
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    lowest, highest = bounds if bounds[0] <= low and high <= bounds[1] else (-math.inf, math.inf)
    span = highest - lowest if math.isfinite(highest - lowest) else max(abs(low), abs(high)) or 1.0
    missing = max(0.0, 0.02 * span - (high - low)) / 2  # equal up to rounding
    low, high = max(lowest, low - missing), min(highest, high + missing)
    margin, beyond = 0.08 * (high - low), 0.03 * (high - low)
    return max(low - margin, lowest - beyond), min(high + margin, highest + beyond)


def count_on(axis: Axis) -> None:
    """Label an axis of counts with whole numbers.

    Example:
        >>> axes = new_figure(4, 3).subplots()
        >>> bars = axes.bar([0], [3])
        >>> count_on(axes.yaxis)
        >>> all(tick == round(tick) for tick in axes.get_yticks())
        True
    """
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True))


def plain(text: str) -> str:
    """Return text that matplotlib draws as it is, without formulas.

    Example:
        >>> print(plain("$a$"))
        \\$a\\$
    """
    return text.replace("$", r"\$")


def shortened(text: str, width: int) -> str:
    """Return text of at most `width` characters, with both of its ends.

    Example:
        >>> shortened("encoder.layers.attention.weight", 13)
        'encode…weight'
    """
    kept = (width - 1) / 2
    return text if len(text) <= width else f"{text[: math.ceil(kept)]}…{text[len(text) - math.floor(kept) :]}"


def wrapped(text: str, width: int, lines: int = 2) -> str:
    """Return text over a few lines of at most `width` characters, broken after spaces and signs.

    Example:
        >>> wrapped("gradual_unfreezing", 12)
        'gradual_\\nunfreezing'
    """
    rows = [""]
    for piece in re.split(r"(?<=[ _/,.-])", text):
        if rows[-1] and len(rows[-1] + piece) > width and len(rows) < lines:
            rows.append("")
        rows[-1] += piece
    return "\n".join(shortened(row.strip(), width) for row in rows)


def _look(theme: str | None) -> Look:
    if theme is not None:
        return THEMES[one_of("theme", theme, THEMES)]
    import matplotlib
    from matplotlib.colors import to_rgba

    *background, opacity = to_rgba(matplotlib.rcParams["figure.facecolor"])
    *text, _ = to_rgba(matplotlib.rcParams["text.color"])
    dark = sum(background) < 1.5 if opacity > 0.5 else sum(text) > 1.5
    return THEMES["dark" if dark else "light"]


@contextmanager
def _rc(look: Look) -> Iterator[None]:
    """Set matplotlib's parameters within the context. Some are read where artists are made, others at each drawing."""
    import matplotlib
    from cycler import cycler

    parameters: Any = {
        "figure.facecolor": look.background,
        "figure.edgecolor": look.background,
        "figure.constrained_layout.h_pad": 0.08,
        "figure.constrained_layout.w_pad": 0.08,
        "savefig.facecolor": "auto",
        "savefig.edgecolor": "auto",
        "savefig.bbox": None,
        "font.family": _fonts(matplotlib.rcParams),
        "font.size": 10,
        "text.color": look.text,
        "axes.facecolor": look.background,
        "axes.edgecolor": look.faint,
        "axes.linewidth": 0.8,
        "axes.labelcolor": look.faint,
        "axes.labelsize": 9.5,
        "axes.titlecolor": look.text,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.titlepad": 8,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": True,
        "axes.spines.bottom": True,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.grid.which": "major",
        "axes.prop_cycle": cycler(color=look.colors),
        "grid.color": look.grid,
        "grid.linestyle": "-",
        "grid.linewidth": 0.8,
        "grid.alpha": 1.0,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "lines.solid_capstyle": "round",
        "patch.linewidth": 0,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "legend.title_fontsize": 9.5,
        "legend.labelcolor": look.text,
        "legend.handlelength": 1.6,
    }
    for axis in "xy":
        own = {"color": look.faint, "labelcolor": look.faint, "labelsize": 9, "direction": "out", "major.pad": 5}
        parameters |= {f"{axis}tick.{name}": value for name, value in own.items()}
        parameters |= {f"{axis}tick.major.size": 0, f"{axis}tick.minor.size": 0, f"{axis}tick.minor.visible": False}
    with _RC, matplotlib.rc_context(parameters):
        yield


def _fonts(parameters: Any) -> list[str]:
    """Return the installed fonts of the user, and those for the letters that they lack."""
    wanted = [name for family in parameters["font.family"] for name in parameters.get(f"font.{family}", [family])]
    return [name for name in dict.fromkeys([*wanted, *_FONTS]) if name in _installed_fonts()]


@functools.cache
def _installed_fonts() -> frozenset[str]:
    from matplotlib.font_manager import fontManager

    return frozenset(font.name for font in fontManager.ttflist)


@functools.cache
def _figure_class() -> Any:
    from matplotlib.figure import Figure  # takes a while, so only on use

    class ShownFigure(Figure):
        """A figure without pyplot, which needs no window and is freed with its last reference."""

        def __init__(self, look: Look, **options: Any) -> None:
            super().__init__(**options)
            self._rc = functools.partial(_rc, look)

        def add_subplot(self, *args: Any, **options: Any) -> Any:
            with self._rc():
                return super().add_subplot(*args, **options)

        def draw(self, renderer: Any) -> None:
            with self._rc():
                super().draw(renderer)

        def savefig(self, *args: Any, **options: Any) -> None:
            with self._rc():
                super().savefig(*args, **options)

        def _repr_png_(self) -> bytes:
            page = BytesIO()
            self.savefig(page, format="png", dpi=100)
            return page.getvalue()

    return ShownFigure
