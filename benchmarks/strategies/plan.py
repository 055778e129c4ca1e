"""The tasks of the benchmark: sides to compare, their grids of rates, seeds and shots."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from benchmarks.rows import Row
from benchmarks.strategies.task import Task, Way

SEEDS = range(10)
TUNING_SEED = 100  # used only to choose rates
SHOTS = 10  # training images per class in all comparisons
EPOCHS = {5: 10, 10: 10, 20: 8, 50: 4}  # by shots
SHOTS_SEEDS = range(3)  # seeds for the table by shots

_LOW, _HIGH = 1e-4, 1e-3  # base rates of the grids
_SECOND = 5e-5  # base rate of LP-FT's second phase

DEFAULT, CHOSEN = SETTINGS = ("default rates", "chosen rates")


def _pairs(strategy: str, *factors: float) -> tuple[Way, ...]:
    return tuple(Way(strategy, (_LOW * factor, _HIGH * factor)) for factor in factors)


def _ones(strategy: str, *factors: float, decay: float | None = None) -> tuple[Way, ...]:
    return tuple(Way(strategy, _HIGH * factor, decay) for factor in factors)


# The grid of each side. Its first entry has the library's default rates, unless the side is about the rates.
SIDES: dict[str, tuple[Way, ...]] = {
    "frozen": (Way("linear_probe"), *_pairs("linear_probe", 1, 3, 10, 30, 100)),
    "last stage": (Way("last_stage"), *_pairs("last_stage", 1, 3, 10, 30, 100)),
    "fine-tuned": (Way("full_finetune"), *_pairs("full_finetune", 1, 3, 10, 30)),
    "from scratch": (Way("from_scratch"), *_pairs("from_scratch", 1), *_ones("from_scratch", 1, 3, 10)),
    "gradual": (Way("gradual_unfreezing"), *_pairs("gradual_unfreezing", 1, 3, 10, 30)),
    "one rate": _ones("full_finetune", 1, 0.3, 3, 10),
    "layer decay": _ones("full_finetune", 1, 3, 10, 30, decay=0.75),
    "LP-FT": (Way("lp_ft"), *(Way("lp_ft", second=_SECOND * factor) for factor in (1, 6, 20, 60, 200))),
}
BY_SHOTS = ("frozen", "last stage", "fine-tuned", "from scratch")

# The library uses neither one rate nor layer decay by default.
SETTINGS_OF = {
    DEFAULT: tuple(side for side in SIDES if side not in ("one rate", "layer decay")),
    CHOSEN: tuple(SIDES),
}


class Measured:
    """The measured rows of some pairs, and the rates chosen from them.

    Attributes:
        rows: Rows by task.
        pairs: Names of the pairs.
    """

    def __init__(self, rows: Mapping[str, Row], pairs: Sequence[str]) -> None:
        self.rows = rows
        self.pairs = pairs

    def grid(self, side: str) -> tuple[Way, ...]:
        """Return the grid of a side. LP-FT's first phase uses the rates chosen for the linear probe."""
        if side != "LP-FT":
            return SIDES[side]
        probe = self.chosen.get("frozen")
        first, *others = SIDES[side]
        return (first, *(Way("lp_ft", probe.lr, second=way.second) for way in others)) if probe else ()

    def tuning(self, way: Way) -> float | None:
        """Return the mean accuracy of a way over all pairs on the tuning seed, or None unless all are measured."""
        found = [self.rows.get(task(pair, way, TUNING_SEED).key) for pair in self.pairs]
        return statistics.mean(row["accuracy"] for row in found if row) if found and all(found) else None

    @cached_property
    def chosen(self) -> dict[str, Way]:
        """The best way of each side over all pairs, the first among equals. Sides with unmeasured grids are absent."""
        best: dict[str, Way] = {}
        self.__dict__["chosen"] = best  # LP-FT's grid reads the choice for the probe
        for side in SIDES:
            accuracies = {way: self.tuning(way) for way in self.grid(side)}
            if accuracies and None not in accuracies.values():
                best[side] = max(accuracies, key=lambda way: accuracies[way] or 0.0)
        return best

    def way(self, side: str, setting: str) -> Way | None:
        """Return the way a side trains in a setting, or None if it is not chosen yet."""
        if side not in SETTINGS_OF[setting]:
            return None
        return SIDES[side][0] if setting == DEFAULT else self.chosen.get(side)

    @cached_property
    def complete_seeds(self) -> int:
        """Number of seeds that are measured for all comparisons."""
        every = [(pair, side, setting) for setting in SETTINGS for side in SETTINGS_OF[setting] for pair in self.pairs]
        return sum(all(self.row(pair, side, seed, setting) for pair, side, setting in every) for seed in SEEDS)

    def row(self, pair: str, side: str, seed: int, setting: str, shots: int = SHOTS) -> Row | None:
        """Return the row of a side for a seed, or None if it is not measured yet."""
        way = self.way(side, setting)
        return None if way is None else self.rows.get(task(pair, way, seed, shots).key)


def stages(pairs: Sequence[str], rows: Mapping[str, Row]) -> Iterator[list[Task]]:
    """Yield lists of tasks. Each depends on the rows of the previous one, which the caller adds to `rows`."""
    yield [task(pair, way, TUNING_SEED) for pair in pairs for side in SIDES if side != "LP-FT" for way in SIDES[side]]
    measured = Measured(rows, pairs)
    yield [task(pair, way, TUNING_SEED) for pair in pairs for way in measured.grid("LP-FT")]
    measured = Measured(rows, pairs)
    known = [measured.way(side, setting) for side in SIDES for setting in SETTINGS if side in SETTINGS_OF[setting]]
    ways = [way for way in dict.fromkeys(known) if way is not None]
    for seed in SEEDS:
        yield [task(pair, way, seed) for pair in pairs for way in ways]
    at_shots = [way for side in BY_SHOTS if (way := measured.way(side, CHOSEN)) is not None]
    for seed in SHOTS_SEEDS:
        yield [task(pair, way, seed, shots) for shots in EPOCHS for pair in pairs for way in at_shots]


def task(pair: str, way: Way, seed: int, shots: int = SHOTS) -> Task:
    """Return a task with the number of epochs for its shots."""
    return Task(pair, way, seed, shots, EPOCHS[shots])
