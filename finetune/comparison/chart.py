"""The plot of a comparison: the compared metric of every entry next to its throughput."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.display.figures import Look, drawing, limits, plain, wrapped
from finetune.training.metrics.named import bounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from finetune.comparison.comparison import Entry

_WIDTH = 30  # characters of a name in one line
_OFFSET = 0.24  # of the runs below their mean, in rows


def draw(
    entries: Sequence[Entry],
    best: Entry | None,
    monitor: str,
    path: str | Path | None = None,
    theme: str | None = None,
    *,
    models: bool,
    seeds: int,
) -> Figure:
    """Draw the metric, with a dot per run and the mean with its interval, next to the throughput.

    Args:
        entries: Entries from top to bottom, those of a model together.
        best: The entry to stand out.
        monitor: Name of the compared metric.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `new_figure`.
        models: Whether to name the model above its strategies.
        seeds: Number of seeds.
    """
    rows: list[tuple[str, Entry | None]] = []
    for model, own in groupby(entries, lambda entry: entry.model):
        rows += [(model, None)] if models else []
        rows += [(entry.strategy, entry) for entry in own]
    names = [plain(wrapped(name, _WIDTH)) for name, _ in rows]
    longest = max((len(line) for name in names for line in name.splitlines()), default=0)
    lines = sum(1 + 0.4 * name.count("\n") for name in names)
    with drawing(8.0 + 0.075 * longest, 1.5 + 0.42 * max(1.5, lines), path, theme) as (figure, look):
        compared, speed = figure.subplots(1, 2, sharey=True)
        for place, (_, entry) in enumerate(rows):
            if entry is not None:
                color = look.colors[1 if entry is best else 0]
                _draw_metric(compared, look, place, entry, color)
                _draw_speed(speed, look, place, entry, color)
        compared.set_title(f"validation {plain(monitor)}")
        compared.set(
            yticks=range(len(names)),
            yticklabels=names,
            ylim=(max(1, len(names) - 0.5), min(-0.5, len(names) / 2 - 1.5)),
        )
        for label, (_, entry) in zip(compared.get_yticklabels(), rows, strict=True):
            label.set_color(look.colors[1] if entry is not None and entry is best else look.text)
            label.set_fontweight("bold" if entry is None or entry is best else "normal")
        drawn = [value for entry in entries for value in (*entry.values.values(), *(entry.interval or ()))]
        compared.set_xlim(limits(drawn, bounds(monitor)))
        compared.locator_params(axis="x", nbins=6)
        if any(entry.interval for entry in entries):
            compared.set_xlabel(f"mean of {seeds} seeds with 95 % interval, and each run")
        speed.set_title("training images per second")
        if any(entry.found for entry in entries):
            speed.set_xlabel("*: reused activations cached by earlier runs")
        speed.set_xlim(0, 1.2 * max((entry.images_per_second for entry in entries), default=0.0) or 1.0)
        speed.locator_params(axis="x", nbins=4)
        speed.xaxis.set_major_formatter("{x:,.0f}")
        if not entries:
            compared.set_xticks([])
            speed.set_xticks([])
        for axes in (compared, speed):
            axes.grid(visible=False, axis="y")
            axes.grid(axis="x")
            axes.spines["left"].set_visible(axes is speed)
    return figure


def _draw_metric(axes: Axes, look: Look, place: int, entry: Entry, color: str) -> None:
    low, high = entry.interval or (entry.mean, entry.mean)
    if len(entry.values) > 1:
        runs = list(entry.values.values())
        axes.plot(runs, [place + _OFFSET] * len(runs), ".", color=look.faint, markersize=5, alpha=0.8, clip_on=False)
    axes.errorbar(
        entry.mean,
        place,
        xerr=[[max(0.0, entry.mean - low)], [max(0.0, high - entry.mean)]],
        marker="o",
        markersize=7,
        capsize=4,
        color=color,
    )


def _draw_speed(axes: Axes, look: Look, place: int, entry: Entry, color: str) -> None:
    bars = axes.barh(place, entry.images_per_second, height=0.6, color=color)
    axes.bar_label(
        bars, [f"{entry.images_per_second:,.0f}{'*' * bool(entry.found)}"], padding=4, fontsize=9, color=look.text
    )
