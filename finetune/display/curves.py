"""Curves of losses, metrics and learning rates by epoch: the plot of a history."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.display.figures import Look, count_on, drawing, limits, plain, shortened, wrapped
from finetune.errors import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Row = Mapping[str, Any]

_MARKED = 30  # epochs with a marker each; more are lines alone
_LABELED = 8  # groups of parameters in the legend
_LOWEST = 0.01  # fraction of the highest learning rate of a group that the axis reaches down to
_WIDE = 1e3  # ratio of two losses from which the axis is logarithmic
_LONG, _END = 24, 16  # characters of the name of a group in the legend, and of each end of "first to last"
_HUGE = 1e100  # no axis reaches further


class Phase(NamedTuple):
    """Consecutive epochs of one phase, the first and the last included."""

    name: str
    first: float
    last: float


def draw_curves(
    rows: Sequence[Row],
    names: Sequence[str],
    path: str | Path | None = None,
    theme: str | None = None,
    *,
    rises: Callable[[str], bool | None],
    bounds: Callable[[str], tuple[float, float]],
) -> Figure:
    """Draw losses and metrics, each in its own axes, and the learning rates below.

    Args:
        rows: Rows of a history.
        names: Names of the losses and metrics, without `val_`.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `new_figure`.
        rises: Function from a name to whether a higher value is better, or None if unknown.
        bounds: Function from a name to its lowest and highest possible value.

    Returns:
        The matplotlib figure.
    """
    columns = 2 if len(names) == 4 else min(3, max(1, len(names)))
    lines = math.ceil(max(1, len(names)) / columns)
    phases, rates = _phases(rows), _rates(rows)
    heights = [2.6] * lines + ([2.0] if rates else [0.7] if len(phases) > 1 else [])
    width = {1: 6.4, 2: 9.0, 3: 12.0}[columns]
    with drawing(width, sum(heights) + 0.5, path, theme) as (figure, look):
        outer = figure.add_gridspec(
            2 if len(heights) > lines else 1, height_ratios=[sum(heights[:lines]), *heights[lines:]]
        )
        grid = outer[0].subgridspec(lines, columns)
        first: Axes | None = None
        for place in range(max(1, len(names))):
            axes = figure.add_subplot(grid[place // columns, place % columns], sharex=first)
            first = first or axes
            if names:
                _draw_values(axes, look, rows, names[place], rises(names[place]), bounds(names[place]))
            else:
                axes.set_title("no epochs", fontweight="normal")
                axes.set_yticks([])
            if place >= len(names) - columns:
                axes.set_xlabel("epoch")
        figure_axes = list(figure.axes)
        if len(heights) > lines:
            below = figure.add_subplot(outer[1].subgridspec(1, 1)[0], sharex=first)
            below.set_xlabel("epoch")
            figure_axes.append(below)
            _draw_rates(below, look, rates)
        _set_epochs(figure_axes, look, rows, phases)
        _add_legend(figure, figure_axes)
        if len(phases) > 1:
            _name_phases(figure, below, look, phases)
    return figure


def _draw_values(
    axes: Axes, look: Look, rows: Sequence[Row], name: str, rises: bool | None, bounds: tuple[float, float]
) -> None:
    """Draw a loss or metric in training and validation, and mark its best epoch."""
    series = {
        label: [(_epoch(rows, place), _number(row[key])) for place, row in enumerate(rows) if is_number(row.get(key))]
        for key, label in ((name, "training"), (f"val_{name}", "validation"))
    }
    for color, (label, points) in zip(look.colors, series.items(), strict=False):
        if points:
            every = _marked([value for _, value in points], len(rows))
            axes.plot(*zip(*points, strict=True), color=color, label=label, marker="o", markevery=every, clip_on=False)
    _set_values(axes, [value for points in series.values() for _, value in points if math.isfinite(value)], bounds)
    best = _best(series["validation"] or series["training"], rises)
    if best is not None:
        axes.plot(*best, "*", color=look.text, markersize=11, markeredgecolor=look.background, label="best epoch",
                  linestyle="none", clip_on=False, zorder=5)  # fmt: skip
        axes.set_title(
            f"best {best[1]:.4g} in epoch {best[0]:g}", loc="right", fontsize=9, fontweight="normal", color=look.faint
        )
    axes.set_title(plain(wrapped(name, 28 if best is None else 16)))


def _set_values(axes: Axes, values: Sequence[float], bounds: tuple[float, float]) -> None:
    """Set the axis of values: logarithmic if they are positive, unbounded above and of several orders of magnitude."""
    if values and min(values) > 0 and max(values) > _WIDE * min(values) and bounds[1] == math.inf:
        axes.set_yscale("log")
        return
    axes.set_ylim(limits(values, bounds))
    if values and all(float(value).is_integer() for value in values) and max(values) - min(values) >= 1:  # counts
        count_on(axes.yaxis)


def _best(points: Sequence[tuple[float, float]], rises: bool | None) -> tuple[float, float] | None:
    """Return the first best point, or None if there are not two to choose from, or the better direction is unknown."""
    finite = [point for point in points if math.isfinite(point[1])]
    if rises is None or len(finite) < 2:
        return None
    return (max if rises else min)(finite, key=lambda point: point[1])


def _marked(values: Sequence[float], epochs: int) -> list[int]:
    """Return the indices of the points with a marker: all of a few, and those that no line leads to."""
    known = [False, *map(math.isfinite, values), False]
    alone = (known[place + 1] and not known[place] and not known[place + 2] for place in range(len(values)))
    return [place for place, single in enumerate(alone) if single or epochs <= _MARKED]


def _draw_rates(axes: Axes, look: Look, rates: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw the learning rates of the groups, from the first update of each epoch to its last."""
    if not rates:
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        return
    together: dict[tuple[str, ...], list[str]] = {}
    for name, points in rates.items():
        together.setdefault(tuple(map(repr, points)), []).append(name)
    groups = list(together.values())
    lowest, highest = _ends(rates)
    short = dict(zip(rates, _distinct(list(rates)), strict=True))
    lines = []
    for group, color in zip(groups, look.shades(len(groups)), strict=True):
        ends = [shortened(short[name], _LONG if len(group) == 1 else _END) for name in (group[0], group[-1])]
        points = [(epoch, max(rate, lowest / 2)) for epoch, rate in rates[group[0]]]  # the axis has no 0
        lines += axes.plot(*zip(*points, strict=True), color=color, label=plain(" to ".join(ends[: len(group)])))
    axes.set(yscale="log", ylabel="learning rate", ylim=(lowest, highest))
    _label_rates(axes)
    labeled = {round(place * (len(lines) - 1) / (_LABELED - 1)) for place in range(_LABELED)}
    handles = [line for place, line in enumerate(lines) if len(lines) <= _LABELED or place in labeled]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.005, 0.5))


def _ends(rates: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Return the ends of the axis of learning rates. The end of a schedule may be below: nearly 0."""
    positive = [[rate for _, rate in points if rate > 0] for points in rates.values()]
    peaks = [max(own) for own in positive if own]
    low, high = max(min(map(min, filter(None, positive))), _LOWEST * min(peaks)), max(peaks)
    margin = max(2.0, (high / low) ** 0.08)
    return low / margin, high * margin


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names for a legend. Long ones lose the modules that all have in common."""
    paths = [name.split(".") for name in names]
    together = takewhile(lambda parts: len(set(parts)) == 1, zip(*(path[:-1] for path in paths), strict=False))
    shared = sum(1 for _ in together) if max(map(len, names)) > _LONG else 0
    own = [f"{'…' if shared else ''}{'.'.join(path[shared:])}" for path in paths]
    # A legend leaves out labels that begin with `_`.
    return [" " * name.startswith("_") + shortened(name, _LONG) for name in own]


def _label_rates(axes: Axes) -> None:
    """Label powers of ten, and numbers between them if there are no two."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullLocator

    low, high = map(math.log10, axes.get_ylim())
    if math.floor(high) <= math.ceil(low):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf)))
    axes.yaxis.set_minor_locator(NullLocator())


def _set_epochs(figure_axes: Sequence[Axes], look: Look, rows: Sequence[Row], phases: Sequence[Phase]) -> None:
    """Set the axis of epochs, which all axes share, and shade every other phase."""
    from matplotlib.ticker import MaxNLocator

    epochs = [_epoch(rows, place) for place in range(len(rows))] or [1.0]
    figure_axes[0].set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    figure_axes[0].xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    for axes in figure_axes:
        for phase in phases[1::2]:
            axes.axvspan(phase.first - 0.5, phase.last + 0.5, color=look.band, linewidth=0, zorder=0)


def _add_legend(figure: Figure, figure_axes: Sequence[Axes]) -> None:
    """Add one legend for training, validation and the best epoch, above all axes."""
    wanted = ("training", "validation", "best epoch")
    lines = {line.get_label(): line for axes in figure_axes for line in axes.lines}
    handles = [lines[label] for label in wanted if label in lines]
    if handles:
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))


def _name_phases(figure: Figure, axes: Axes, look: Look, phases: Sequence[Phase]) -> None:
    """Name the phases above an axes, or number them there and name them below if there is no room."""

    def label(names: Sequence[str]) -> list[Text]:
        above = axes.get_xaxis_transform()
        return [
            axes.text((phase.first + phase.last) / 2, 1.03, plain(name), transform=above, ha="center", va="bottom",
                      fontsize=9, color=look.faint)
            for phase, name in zip(phases, names, strict=True)
        ]  # fmt: skip

    def overlapping(texts: Sequence[Text]) -> list[Text]:
        figure.draw_without_rendering()
        end, found = -math.inf, []
        for text in texts:
            box = text.get_window_extent()
            if box.x0 < end or not axes.bbox.x0 - 20 <= box.x0 <= box.x1 <= axes.bbox.x1 + 20:
                found.append(text)
            else:
                end = box.x1 + 4
        return found

    texts = label([phase.name for phase in phases])
    if not overlapping(texts):
        return
    for text in texts:
        text.remove()
    # No break between a number and its name.
    named = ", ".join(f"{number}\xa0{phase.name}" for number, phase in enumerate(phases, 1))
    width = int(13 * figure.get_figwidth())
    lines = textwrap.wrap(f"phases: {named}", width, break_on_hyphens=False, max_lines=4, placeholder=" …")
    axes.set_xlabel(plain("\n".join(["epoch", *lines])))
    figure.set_figheight(figure.get_figheight() + 0.17 * len(lines))
    for text in overlapping(label([str(number) for number in range(1, len(phases) + 1)])):
        text.remove()


def _phases(rows: Sequence[Row]) -> list[Phase]:
    named = ((str(row.get("phase", "")), _epoch(rows, place)) for place, row in enumerate(rows))
    runs = ((name, [epoch for _, epoch in run]) for name, run in groupby(named, lambda pair: pair[0]))
    return [Phase(name, epochs[0], epochs[-1]) for name, epochs in runs]


def _rates(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """Return points of epoch and learning rate by group, with a gap where a phase begins or has no such group."""
    by_row = [_by_group(row.get("lr")) for row in rows]
    found: dict[str, list[tuple[float, float]]] = {}
    # The row with the most groups has them in the order of the model.
    for name in dict.fromkeys(name for rates in sorted(by_row, key=len, reverse=True) for name in rates):
        found[name] = list(_rate_points(rows, by_row, name))
    return found if any(rate > 0 for points in found.values() for _, rate in points) else {}


def _rate_points(
    rows: Sequence[Row], by_row: Sequence[Mapping[str, float]], name: str
) -> Iterator[tuple[float, float]]:
    for place, (row, rates) in enumerate(zip(rows, by_row, strict=True)):
        epoch = _epoch(rows, place)
        if place and row.get("phase") != rows[place - 1].get("phase"):
            yield epoch - 0.5, math.nan
        last = rates.get(name, math.nan)
        yield epoch - 0.5, _by_group(row.get("lr_start")).get(name, last)
        yield epoch + 0.5, last


def _by_group(rates: Any) -> dict[str, float]:
    named = rates if isinstance(rates, Mapping) else {"all": rates}
    return {str(name): _number(rate) for name, rate in named.items() if is_number(rate)}


def _epoch(rows: Sequence[Row], place: int) -> float:
    epoch = rows[place].get("epoch")
    return float(epoch) if epoch is not None and is_number(epoch) else place + 1.0


def _number(value: Any) -> float:
    """Return a number to draw, or NaN for a gap."""
    return float(value) if abs(value) < _HUGE else math.nan
