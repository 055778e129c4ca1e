"""Which runs there are: sides to compare, the rates each may choose from, seeds and shots."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from benchmarks.strategies.work import Row, Task, Way

SEEDS = range(10)
TUNING_SEED = 100  # rates are chosen on its pictures, and nothing else
SHOTS = 10  # of all comparisons
EPOCHS = {5: 10, 10: 10, 20: 8, 50: 4}  # by shots
SHOTS_SEEDS = range(3)  # of other shots than those of the comparisons

_LOW, _HIGH = 1e-4, 1e-3  # what the grids are multiples of
_SECOND = 5e-5  # so are those of LP-FT's second phase

DEFAULT, CHOSEN = SETTINGS = ("default rates", "chosen rates")


def _pairs(strategy: str, *factors: float) -> tuple[Way, ...]:
    return tuple(Way(strategy, (_LOW * factor, _HIGH * factor)) for factor in factors)


def _ones(strategy: str, *factors: float, decay: float | None = None) -> tuple[Way, ...]:
    return tuple(Way(strategy, _HIGH * factor, decay) for factor in factors)


# The ways a side may choose from. The first has the library's own rates, but where the side is one of its rates.
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

# One rate and layer decay are no default of the library.
SETTINGS_OF = {
    DEFAULT: tuple(side for side in SIDES if side not in ("one rate", "layer decay")),
    CHOSEN: tuple(SIDES),
}


class Measured:
    """The rows that there are of some pairs, and which rates follow from them.

    Attributes:
        rows: by task.
        pairs: their names.
    """

    def __init__(self, rows: Mapping[str, Row], pairs: Sequence[str]) -> None:
        self.rows = rows
        self.pairs = pairs

    def grid(self, side: str) -> tuple[Way, ...]:
        """Return the ways a side may choose from; LP-FT's probe has the rates that were chosen for the probe."""
        if side != "LP-FT":
            return SIDES[side]
        probe = self.chosen.get("frozen")
        first, *others = SIDES[side]
        return (first, *(Way("lp_ft", probe.lr, second=way.second) for way in others)) if probe else ()

    def tuning(self, way: Way) -> float | None:
        """Return the mean accuracy of a way over all pairs on the tuning seed; None unless all are measured."""
        found = [self.rows.get(task(pair, way, TUNING_SEED).key) for pair in self.pairs]
        return statistics.mean(row["accuracy"] for row in found if row) if found and all(found) else None

    @cached_property
    def chosen(self) -> dict[str, Way]:
        """The best way of each side over all pairs, the first of equals; only of sides whose grid is measured."""
        best: dict[str, Way] = {}
        self.__dict__["chosen"] = best  # LP-FT's grid asks for the probe's
        for side in SIDES:
            accuracies = {way: self.tuning(way) for way in self.grid(side)}
            if accuracies and None not in accuracies.values():
                best[side] = max(accuracies, key=lambda way: accuracies[way] or 0.0)
        return best

    def way(self, side: str, setting: str) -> Way | None:
        """Return how a side trains in a setting."""
        if side not in SETTINGS_OF[setting]:
            return None
        return SIDES[side][0] if setting == DEFAULT else self.chosen.get(side)

    @cached_property
    def whole_seeds(self) -> int:
        """How many seeds are measured for all that is compared."""
        every = [(pair, side, setting) for setting in SETTINGS for side in SETTINGS_OF[setting] for pair in self.pairs]
        return sum(all(self.row(pair, side, seed, setting) for pair, side, setting in every) for seed in SEEDS)

    def row(self, pair: str, side: str, seed: int, setting: str, shots: int = SHOTS) -> Row | None:
        """Return what a side gave with a seed, None where it is not measured yet."""
        way = self.way(side, setting)
        return None if way is None else self.rows.get(task(pair, way, seed, shots).key)


def stages(pairs: Sequence[str], rows: Mapping[str, Row]) -> Iterator[list[Task]]:
    """Yield lists of tasks, each to be done before the next is asked for; `rows` fills meanwhile."""
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
    """Return the task, with the epochs that such shots have."""
    return Task(pair, way, seed, shots, EPOCHS[shots])
