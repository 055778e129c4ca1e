"""The result of `compare`: one row per run, one entry per model and strategy, a table and a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.caching.planner import format_bytes
from finetune.comparison.chart import draw
from finetune.comparison.statistics import holm, interval, paired_p_value
from finetune.display import html
from finetune.threads.cached import cached_property

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MISSING = "-"


@dataclass(frozen=True)
class RunResult:
    """The result of one run: one model, one strategy, one seed.

    Attributes:
        model: Label of the model.
        strategy: Label of the strategy.
        seed: Seed of the run.
        monitor: Name of the compared metric, such as `"accuracy"`.
        value: The metric on the validation data after the last epoch, or None if the run failed.
        higher_is_better: Direction of the metric.
        images_per_second: Training throughput in samples per second, median over the epochs.
        seconds: Wall time of `fit`, including validation.
        peak_memory: Peak memory in bytes: tensors on a CUDA device, otherwise the whole process. None if unknown.
        trained_parameters: Number of parameters trained in at least one phase.
        checkpoint_size: Size of a saved checkpoint in bytes.
        found: Fraction of the cached activations that an earlier run had already stored, or None without a cache.
        error: Reason for the failure, or None if the run succeeded.
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
    """A model with a strategy, summarized over the seeds that succeeded.

    Attributes:
        model: Label of the model.
        strategy: Label of the strategy.
        values: The compared metric by seed.
        interval: 95 % confidence interval of the mean (Student's t, within the range of the metric), or None with fewer
            than 2 seeds.
        p_value: P-value of a paired t-test against the best entry over their common seeds, corrected for multiple
            tests. None for the best entry itself or if no test is possible.
        images_per_second: Median throughput over the seeds.
        seconds: Median duration over the seeds.
        peak_memory: Maximum over the seeds in bytes, or None if unknown.
        trained_parameters: Maximum over the seeds, which hardly differ.
        checkpoint_size: Maximum over the seeds, which hardly differ, in bytes.
        found: Mean fraction of cached activations that earlier runs had stored, or None without a cache.
    """

    model: str
    strategy: str
    values: dict[int, float]
    interval: tuple[float, float] | None
    p_value: float | None
    images_per_second: float
    seconds: float
    peak_memory: int | None
    trained_parameters: int
    checkpoint_size: int
    found: float | None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())


class Comparison:
    """The results of `compare`. `str()` returns the table.

    Args:
        rows: One result per run, including failed runs.
        budget: Epochs per run.

    Attributes:
        rows: One result per run, including failed runs.
        budget: Epochs per run.
        monitor: Name of the compared metric, such as `"accuracy"`.
        higher_is_better: Direction of the metric.

    Example:
        >>> rows = [
        ...     RunResult("resnet18", strategy, seed, "accuracy", value)
        ...     for strategy, values in {"linear_probe": (0.81, 0.84), "lp_ft": (0.88, 0.90)}.items()
        ...     for seed, value in enumerate(values)
        ... ]
        >>> comparison = Comparison(rows, budget=10)
        >>> comparison.best.strategy, round(comparison.best.mean, 3)
        ('lp_ft', 0.89)
        >>> [(entry.strategy, entry.values) for entry in comparison.entries]
        [('linear_probe', {0: 0.81, 1: 0.84}), ('lp_ft', {0: 0.88, 1: 0.9})]
        >>> comparison.failed
        ()
    """

    def __init__(self, rows: Iterable[RunResult], budget: int) -> None:
        self.rows = tuple(rows)
        self.budget = budget
        succeeded = self._succeeded()
        self.monitor = succeeded[0].monitor if succeeded else "accuracy"
        self.higher_is_better = succeeded[0].higher_is_better if succeeded else True

    @property
    def failed(self) -> tuple[RunResult, ...]:
        """Failed runs, each with its `error`."""
        return tuple(row for row in self.rows if row.error is not None)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """One entry per model and strategy, in the given order, without those that failed with every seed."""
        grouped: dict[tuple[str, str], list[RunResult]] = {}
        for row in self._succeeded():
            grouped.setdefault((row.model, row.strategy), []).append(row)
        values = {name: _by_seed(rows) for name, rows in grouped.items()}
        best = self._best_of(values)
        p_values = {name: _paired(own, values[best]) for name, own in values.items() if best not in (name, None)}
        corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
        return tuple(_entry(*name, values[name], corrected.get(name), rows) for name, rows in grouped.items())

    @property
    def best(self) -> Entry | None:
        """Entry with the best mean among those with the most seeds, or None if every run failed."""
        name = self._best_of({(entry.model, entry.strategy): entry.values for entry in self.entries})
        return next((entry for entry in self.entries if (entry.model, entry.strategy) == name), None)

    def to_markdown(self) -> str:
        """Return the table and its notes as Markdown.

        Example:
            >>> print(Comparison([RunResult("resnet18", "lp_ft", 0, "accuracy", 0.9)], budget=10).to_markdown())
            | strategy | accuracy | p | img/s | seconds | memory | trained | file |
            | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
            | lp_ft | 0.900 | best | 0 | 0.0 | - | 0 | 0 B |
            ...
        """
        lines, words = self._lines()
        lines.insert(1, ["---"] * words + ["---:"] * (len(lines[0]) - words))
        table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        return f"{table}\n\n" + "\n".join(f"- {note}" for note in self._notes()) + "\n"

    def __str__(self) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        columns = self._columns()
        for number, name in enumerate(columns):
            table.add_column(name, justify="right" if number else "left", no_wrap=True)
        for model, entries in groupby(self.entries, lambda entry: entry.model):
            indent = "  " if self._several_models else ""
            if self._several_models:
                table.add_row(model)
            for entry in entries:
                first, *others = (cell(entry) for cell in columns.values())
                table.add_row(indent + first, *others)
        page = StringIO()
        console = Console(file=page, width=1000, color_system=None, force_jupyter=False, markup=False, highlight=False)
        console.print(table)
        return "\n".join([*(line.rstrip() for line in page.getvalue().splitlines()), "", *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        (header, *rows), words = self._lines()
        return html.table(header, rows, text=words) + html.paragraph(*self._notes())

    def plot(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot the compared metric, with a dot per run and the mean with its interval, next to the throughput.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Example:
            >>> figure = Comparison([RunResult("resnet18", "lp_ft", 0, "accuracy", 0.9)], budget=10).plot()
            >>> [axes.get_title("left") for axes in figure.axes]
            ['validation accuracy', 'training images per second']
        """
        models, seeds = self._several_models, self._num_seeds
        return draw(self.entries, self.best, self.monitor, path, theme, models=models, seeds=seeds)

    def _succeeded(self) -> list[RunResult]:
        return [row for row in self.rows if row.error is None]

    @property
    def _num_seeds(self) -> int:
        return len({row.seed for row in self.rows})

    @property
    def _several_models(self) -> bool:
        return len({row.model for row in self.rows}) > 1

    def _best_of(self, values: dict[tuple[str, str], dict[int, float]]) -> tuple[str, str] | None:
        most = max(map(len, values.values()), default=0)
        sign = 1 if self.higher_is_better else -1
        complete = [name for name, by_seed in values.items() if len(by_seed) == most]
        return max(complete, key=lambda name: sign * statistics.fmean(values[name].values()), default=None)

    def _name(self, entry: Entry | RunResult) -> str:
        return f"{entry.model}, {entry.strategy}" if self._several_models else entry.strategy

    def _columns(self) -> dict[str, Callable[[Entry], str]]:
        """Return the function that formats an entry's cell, by column header."""
        best = self.best
        columns: dict[str, Callable[[Entry], str]] = {
            "strategy": lambda entry: entry.strategy,
            self.monitor: _mean_with_interval,
            "p": lambda entry: "best" if entry is best else _p(entry.p_value),
            "seeds": lambda entry: str(len(entry.values)),
            "img/s": lambda entry: f"{entry.images_per_second:,.0f}" + "*" * bool(entry.found),
            "seconds": lambda entry: f"{entry.seconds:,.1f}" + "*" * bool(entry.found),
            "memory": lambda entry: _MISSING if entry.peak_memory is None else format_bytes(entry.peak_memory),
            "trained": lambda entry: _count(entry.trained_parameters),
            "file": lambda entry: format_bytes(entry.checkpoint_size),
        }
        if all(len(entry.values) == self._num_seeds for entry in self.entries):
            del columns["seeds"]
        return columns

    def _lines(self) -> tuple[list[list[str]], int]:
        """Return the header and the cells of every entry, and how many of the columns are text, which come first."""
        columns = self._columns()
        if self._several_models:
            columns = {"model": lambda entry: entry.model, **columns}
        lines = [[*columns], *([cell(entry) for cell in columns.values()] for entry in self.entries)]
        return lines, list(columns).index(self.monitor)

    def _notes(self) -> list[str]:
        """Return the notes below the table, one line each."""
        tests = sum(entry.p_value is not None for entry in self.entries)
        over = f"mean of {self._num_seeds} seeds ± 95 % interval" if self._num_seeds > 1 else "one seed"
        notes = [f"{self.monitor}: on validation data after epoch {self.budget}, {over}"]
        if tests:
            notes.append(f"p: paired t-test against the best entry, Holm-corrected for {tests} test{'s' * (tests > 1)}")
        notes.append("memory: peak; trained: parameters; file: checkpoint size")
        if any(entry.found for entry in self.entries):
            notes.append("*: reused activations cached by earlier runs; use cache=False to compare speed")
        return [*notes, *(f"Failed: {self._name(row)}, seed {row.seed}: {row.error}" for row in self.failed)]


def _entry(
    model: str, strategy: str, values: dict[int, float], p_value: float | None, rows: Sequence[RunResult]
) -> Entry:
    found = [row.found for row in rows if row.found is not None]
    return Entry(
        model,
        strategy,
        values,
        interval(list(values.values()), rows[0].monitor),
        p_value,
        images_per_second=statistics.median(row.images_per_second for row in rows),
        seconds=statistics.median(row.seconds for row in rows),
        peak_memory=max((row.peak_memory for row in rows if row.peak_memory is not None), default=None),
        trained_parameters=max(row.trained_parameters for row in rows),
        checkpoint_size=max(row.checkpoint_size for row in rows),
        found=statistics.fmean(found) if found else None,
    )


def _by_seed(rows: Iterable[RunResult]) -> dict[int, float]:
    return {row.seed: row.value for row in rows if row.value is not None}


def _paired(own: dict[int, float], best: dict[int, float]) -> float | None:
    common = [seed for seed in own if seed in best]
    return paired_p_value([own[seed] for seed in common], [best[seed] for seed in common])


def _mean_with_interval(entry: Entry) -> str:
    if entry.interval is None:
        return _number(entry.mean)
    low, high = entry.interval
    if math.isclose(entry.mean - low, high - entry.mean, abs_tol=1e-9):
        return f"{_number(entry.mean)} ± {_number(high - entry.mean)}"
    return f"{_number(entry.mean)} ({_number(low)} to {_number(high)})"  # cut at the end of the metric's range


def _number(value: float) -> str:
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def _count(parameters: int) -> str:
    return f"{parameters:,}" if parameters < 10**6 else f"{parameters / 10**6:,.1f} M"


def _p(value: float | None) -> str:
    if value is None:
        return _MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"
