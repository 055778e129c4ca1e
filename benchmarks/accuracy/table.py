"""The report on accuracies: means, paired differences with their intervals, and verdicts."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from benchmarks.accuracy.contenders import CONTENDERS, OURS
from benchmarks.machine import processor
from benchmarks.rows import Row
from finetune.comparison.statistics import half_width

_SETTINGS = ("shots", "epochs", "batch_size")


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and the half-width of its 95 % interval by Student's t, in points.

    The half-width of a single value is NaN.
    """

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference:
        """Return the difference estimated from paired differences of accuracy."""
        points = [100 * value for value in values]
        half = half_width(points)
        return cls(statistics.fmean(points), math.nan if half is None else half)

    @property
    def lost(self) -> bool:
        """Whether the interval lies below zero."""
        return self.mean + self.half < 0

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ± {self.half:.1f}"


@dataclass(frozen=True)
class Setting:
    """The rows of one budget: accuracies by contender, pair and seed."""

    values: Mapping[str, Mapping[str, Mapping[int, float]]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Setting:
        """Return the setting of some rows."""
        values: dict[str, dict[str, dict[int, float]]] = {name: {} for name in CONTENDERS}
        for row in rows:
            values[row["contender"]].setdefault(row["pair"], {})[row["seed"]] = row["accuracy"]
        return cls({name: by_pair for name, by_pair in values.items() if by_pair})

    @property
    def pairs(self) -> list[str]:
        """The pairs, in order of appearance."""
        return list(dict.fromkeys(pair for by_pair in self.values.values() for pair in by_pair))

    def mean(self, name: str, pair: str) -> float:
        """Return the mean accuracy of a contender on a pair over the seeds, or NaN without any."""
        return statistics.fmean(self.values[name].get(pair, {0: math.nan}).values())

    def on_pair(self, name: str, pair: str) -> Difference | None:
        """Return the difference of finetune to a contender on a pair, over their common seeds."""
        by_seed = self._by_seed(name, pair)
        return Difference.of(list(by_seed.values())) if by_seed else None

    def overall(self, name: str) -> Difference | None:
        """Return the difference over all pairs, with the interval over the seeds that are complete for every pair."""
        by_pair = [self._by_seed(name, pair) for pair in self.pairs]
        seeds = set.intersection(*(set(by_seed) for by_seed in by_pair))
        means = [statistics.fmean(by_seed[seed] for by_seed in by_pair) for seed in sorted(seeds)]
        return Difference.of(means) if means else None

    def _by_seed(self, name: str, pair: str) -> dict[int, float]:
        ours, theirs = (self.values.get(contender, {}).get(pair, {}) for contender in (OURS, name))
        return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def table(rows: Sequence[Row], left_out: Mapping[str, str]) -> str:
    """Return the report as Markdown.

    Args:
        rows: Rows of all trials.
        left_out: Contenders that are not installed, with the message of the import error.
    """
    settings = {tuple(row[name] for name in _SETTINGS): None for row in rows}
    by_setting = {
        setting: Setting.of([row for row in rows if tuple(row[name] for name in _SETTINGS) == setting])
        for setting in sorted(settings)
    }
    shown = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
    wrong = sorted({f"{row['contender']}: {row['wrong']}" for row in rows if row["wrong"]})
    versions = sorted({row["version"] for row in rows if row["version"]})
    parts = [
        "# Accuracy at the same budget",
        f"Written by `python -m benchmarks.accuracy` on {date.today().isoformat()}: {', '.join(versions)}, Python "
        f"{platform.python_version()}, {processor()}. `benchmarks/accuracy/__init__.py` describes the fairness rules, "
        f"`benchmarks/pairs` the pairs. Accuracies are in %, on test images. Differences are in points, finetune's "
        f"defaults minus the contender, paired by seed, with 95 % intervals. Over all pairs, the interval is for the "
        f"mean over these pairs. Among comparisons of equals, about one in forty is lost by chance.",
        "\n".join(f"- `{name}`: {CONTENDERS[name].defaults}." for name in shown),
    ]
    if left_out:
        parts.append(f"Not installed: {', '.join(f'{name} ({why})' for name, why in left_out.items())}.")
    if wrong:
        parts.append(f"**Not the same budget**: {'; '.join(wrong)}.")
    for (shots, epochs, batch_size), setting in by_setting.items():
        title = f"## {shots} shots, {epochs} epochs, batches of {batch_size}"
        parts += [title, verdict(setting), _accuracies(setting), _differences(setting)]
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict(setting: Setting) -> str:
    """Return a sentence that compares finetune's defaults with every peer, on the mean and on each pair."""
    peers = [name for name in setting.values if not CONTENDERS[name].ours]
    means = {name: difference for name in peers if (difference := setting.overall(name)) is not None}
    if not means:
        return ""
    behind = [f"{name} ({difference})" for name, difference in means.items() if difference.mean < 0]
    lost = [
        f"{pair} against {name} ({difference})"
        for name in means
        for pair in setting.pairs
        if (difference := setting.on_pair(name, pair)) is not None and difference.lost
    ]
    nearest = min(means, key=lambda name: means[name].mean)
    on_mean = f"behind {', '.join(behind)}" if behind else f"at or above all {len(means)} peers"
    return (
        f"**On average {on_mean}; the closest is {nearest}, {means[nearest]}. Pairs lost by more than their interval: "
        f"{'; '.join(lost) or 'none'}.**"
    )


def _accuracies(setting: Setting) -> str:
    pairs = setting.pairs
    lines = []
    for name in setting.values:
        means = [setting.mean(name, pair) for pair in pairs]
        cells = " | ".join(f"{100 * mean:.1f}" for mean in (*means, statistics.fmean(means)))
        lines.append(f"| {name} | {cells} |")
    seeds = sorted({len(by_seed) for by_pair in setting.values.values() for by_seed in by_pair.values()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return "\n".join([*_header(f"accuracy, {count} seeds", pairs), *lines])


def _differences(setting: Setting) -> str:
    pairs = setting.pairs
    lines = []
    for name in setting.values:
        if name != OURS and OURS in setting.values:
            cells = [*(setting.on_pair(name, pair) for pair in pairs), setting.overall(name)]
            lines.append(f"| {name} | {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join([*_header("finetune minus", pairs), *lines]) if lines else ""


def _cell(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    return f"**{difference}**" if difference.lost else str(difference)


def _header(first: str, pairs: Sequence[str]) -> list[str]:
    return [f"| {first} | {' | '.join(pairs)} | all |", "| --- |" + " --- |" * (len(pairs) + 1)]
