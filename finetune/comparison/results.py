"""What came of a comparison: a row for each run, an entry for each model and strategy, a table and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from finetune.caching.planner import format_bytes
from finetune.comparison.statistics import half_width, holm, paired_p_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 140
_NONE = "-"


@dataclass(frozen=True)
class Row:
    """One run: a model and a strategy with one seed.

    Attributes:
        model, strategy: what the comparison calls them.
        seed: of everything random in the run.
        monitor: what is compared, such as `"accuracy"`.
        value: of that, on the validation data after the last epoch; None where the run failed.
        higher_is_better: which way it gets better.
        images_per_second: training samples a second, the median over the epochs.
        seconds: from the call of `fit` to its end, validation included.
        peak_memory: bytes; of a CUDA device what tensors took, else what the process took with all that it
            had loaded; None where that is not known.
        trained_parameters: how many numbers trained in one phase or another.
        checkpoint_size: bytes of what `save_checkpoint` writes.
        found: which share of what was stored of frozen layers an earlier run had stored already; None where
            nothing was stored.
        error: why the run failed, None where it did not.
    """

    model: str
    strategy: str
    seed: int
    monitor: str = ""
    value: float | None = None
    higher_is_better: bool = True
    images_per_second: float = 0.0
    seconds: float = 0.0
    peak_memory: int | None = None
    trained_parameters: int = 0
    checkpoint_size: int = 0
    found: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Entry:
    """A model with a strategy, over all its seeds that did not fail.

    Attributes:
        model, strategy: what the comparison calls them.
        values: what is compared, by seed.
        p_value: of the paired t-test against the best entry over the seeds that both have, corrected for how many
            tests there are; None for the best one itself and where there is no test.
        images_per_second, seconds: the median over the seeds.
        peak_memory: bytes, the largest; None where it is not known.
        trained_parameters, checkpoint_size: the largest; they hardly depend on the seed.
        found: the mean share of stored activations that were there already.
    """

    model: str
    strategy: str
    values: dict[int, float]
    p_value: float | None
    images_per_second: float
    seconds: float
    peak_memory: int | None
    trained_parameters: int
    checkpoint_size: int
    found: float | None

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean by Student's t; None for fewer than 2 seeds."""
        half = half_width(list(self.values.values()))
        return None if half is None else (self.mean - half, self.mean + half)


class Comparison:
    """The runs of `compare` and what they add up to. `str()` gives the table.

    Attributes:
        rows: one for each run, failed ones too.
        budget: epochs of each run.
        monitor: what is compared, such as `"accuracy"`.
        higher_is_better: which way it gets better.
    """

    def __init__(self, rows: Iterable[Row], budget: int) -> None:
        self.rows = tuple(rows)
        self.budget = budget
        done = self._done(self.rows)
        self.monitor = done[0].monitor if done else "accuracy"
        self.higher_is_better = done[0].higher_is_better if done else True

    @property
    def failed(self) -> tuple[Row, ...]:
        """The runs that failed; `error` says why."""
        return tuple(row for row in self.rows if row.error is not None)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """What each model gave with each strategy, in the order they were given; without those that always failed."""
        grouped: dict[tuple[str, str], list[Row]] = {}
        for row in self._done(self.rows):
            grouped.setdefault((row.model, row.strategy), []).append(row)
        values = {name: _by_seed(rows) for name, rows in grouped.items()}
        best = self._best_of(values)
        p_values = {name: _paired(own, values[best]) for name, own in values.items() if best not in (name, None)}
        corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
        return tuple(_entry(*name, values[name], corrected.get(name), rows) for name, rows in grouped.items())

    @property
    def best(self) -> Entry | None:
        """The entry with the best mean, of those with most seeds; None if all runs failed."""
        name = self._best_of({(entry.model, entry.strategy): entry.values for entry in self.entries})
        return next((entry for entry in self.entries if (entry.model, entry.strategy) == name), None)

    def to_markdown(self) -> str:
        """Return the table and what is to be said of it as Markdown."""
        names, *cells = self._cells()
        lines = [names, ["---"] + ["---:"] * (len(names) - 1), *cells]
        table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        return f"{table}\n\n" + "\n".join(f"{note}\n" for note in self._notes())

    def __str__(self) -> str:
        names, *cells = self._cells()
        table = Table(box=box.SIMPLE, pad_edge=False)
        texts = names.index(self.monitor)  # the columns before it are words
        for index, name in enumerate(names):
            table.add_column(name, justify="left" if index < texts else "right", overflow="fold")
        for line in cells:
            table.add_row(*line)
        page = StringIO()
        console = Console(
            file=page, width=_WIDTH, color_system=None, force_terminal=False, force_jupyter=False, markup=False
        )
        console.print(table)
        return "\n".join([*(line.rstrip() for line in page.getvalue().splitlines()), *self._notes()])

    __repr__ = __str__

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw what is compared, each run a dot and the mean with its interval, and images per second beside it.

        Args:
            path: where to write the picture as well; the format follows the suffix.

        Returns:
            The matplotlib figure.
        """
        from matplotlib.figure import Figure

        names = [self._name(entry) for entry in self.entries]
        figure = Figure(figsize=(9, 1.4 + 0.45 * len(names)), layout="constrained")
        compared, speed = figure.subplots(1, 2, sharey=True)
        for place, entry in enumerate(self.entries):
            color = "tab:orange" if entry is self.best else "tab:blue"
            half = half_width(list(entry.values.values())) or 0.0
            compared.plot(list(entry.values.values()), [place] * len(entry.values), ".", color="0.7")
            compared.errorbar(entry.mean, place, xerr=half, marker="o", capsize=4, color=color)
            bars = speed.barh(place, entry.images_per_second, color=color)
            speed.bar_label(bars, fmt="{:,.0f}", padding=3)
        sure = ", 95 % interval" if any(entry.interval for entry in self.entries) else ""
        compared.set(title=f"{self.monitor} on the validation data{sure}", yticks=range(len(names)), yticklabels=names)
        compared.set_ylim(max(1, len(names)) - 0.5, -0.5)  # the first on top, as in the table
        speed.set(title="training images per second")
        speed.margins(x=0.2)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure

    @staticmethod
    def _done(rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if row.error is None]

    def _best_of(self, values: dict[tuple[str, str], dict[int, float]]) -> tuple[str, str] | None:
        most = max(map(len, values.values()), default=0)
        sign = 1 if self.higher_is_better else -1
        whole = [name for name, by_seed in values.items() if len(by_seed) == most]
        return max(whole, key=lambda name: sign * statistics.fmean(values[name].values()), default=None)

    def _name(self, entry: Entry | Row) -> str:
        several = len({row.model for row in self.rows}) > 1
        return f"{entry.model}, {entry.strategy}" if several else entry.strategy

    def _cells(self) -> list[list[str]]:
        """Return the names of the columns, and a line of cells for each entry."""
        best = self.best
        columns: dict[str, Callable[[Entry], str]] = {
            "model": lambda entry: entry.model,
            "strategy": lambda entry: entry.strategy,
            self.monitor: _mean_with_interval,
            "p": lambda entry: "best" if entry is best else _p(entry.p_value),
            "seeds": lambda entry: str(len(entry.values)),
            "images/s": lambda entry: f"{entry.images_per_second:,.0f}",
            "seconds": lambda entry: f"{entry.seconds:,.1f}",
            "peak memory": lambda entry: _NONE if entry.peak_memory is None else format_bytes(entry.peak_memory),
            "trained parameters": lambda entry: f"{entry.trained_parameters:,}",
            "checkpoint": lambda entry: format_bytes(entry.checkpoint_size),
            "found": lambda entry: _NONE if entry.found is None else f"{entry.found:.0%}",
        }
        if len({row.model for row in self.rows}) == 1:
            del columns["model"]
        return [list(columns), *([cell(entry) for cell in columns.values()] for entry in self.entries)]

    def _notes(self) -> list[str]:
        """Return what is to be said of the table, a line each."""
        seeds = len({row.seed for row in self.rows})
        tests = sum(entry.p_value is not None for entry in self.entries)
        mean = f"the mean over {seeds} seeds ± half of its 95 % interval (Student's t)" if seeds > 1 else "of one seed"
        notes = [f"{self.monitor}: on the validation data after the last of {self.budget} epochs, {mean}"]
        if tests:
            notes.append(f"p: paired t-test against the best over the same seeds, corrected for {tests} tests (Holm)")
        if any(entry.found for entry in self.entries):
            notes.append(
                "found: of what is stored of frozen layers, what an earlier run had stored already; it took less time "
                "than it would have alone, so that its seconds do not compare. With cache=False they do."
            )
        return [
            *(f"{note.rstrip('.')}." for note in notes),
            *(f"Failed: {self._name(row)}, seed {row.seed}: {row.error}" for row in self.failed),
        ]


def _entry(model: str, strategy: str, values: dict[int, float], p_value: float | None, rows: Sequence[Row]) -> Entry:
    found = [row.found for row in rows if row.found is not None]
    return Entry(
        model,
        strategy,
        values,
        p_value,
        images_per_second=statistics.median(row.images_per_second for row in rows),
        seconds=statistics.median(row.seconds for row in rows),
        peak_memory=max((row.peak_memory for row in rows if row.peak_memory is not None), default=None),
        trained_parameters=max(row.trained_parameters for row in rows),
        checkpoint_size=max(row.checkpoint_size for row in rows),
        found=statistics.fmean(found) if found else None,
    )


def _by_seed(rows: Iterable[Row]) -> dict[int, float]:
    return {row.seed: row.value for row in rows if row.value is not None}


def _paired(own: dict[int, float], best: dict[int, float]) -> float | None:
    both = [seed for seed in own if seed in best]
    return paired_p_value([own[seed] for seed in both], [best[seed] for seed in both])


def _mean_with_interval(entry: Entry) -> str:
    half = half_width(list(entry.values.values()))
    return _number(entry.mean) if half is None else f"{_number(entry.mean)} ± {_number(half)}"


def _number(value: float) -> str:
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def _p(value: float | None) -> str:
    if value is None:
        return _NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
