"""The situations and their measurement."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.pairs import PAIRS
from benchmarks.rows import Row
from finetune import FineTuner

EPOCHS, BATCH_SIZE = 15, 16
SHOTS = (5, 12, 40)
IMBALANCED = (12, 8.0)  # mean images per class, and ratio of the largest class to the smallest

STRATEGIES = ("linear_probe", "last_stage", "lp_ft", "gradual_unfreezing", "full_finetune")
# Variants with a larger rate in the first stage than the default, as a fraction of the head's rate.
FASTER, FIRST_SHARE = ", faster", 0.1
HEAD_RATE = 1e-2  # the default rate of the head in these networks

# The choices of advice, as arguments of `fit` by name.
CHOICES: dict[str, dict[str, Any]] = {
    **{name: {"strategy": name} for name in STRATEGIES},
    **{name + FASTER: {"strategy": name, "lr": (FIRST_SHARE * HEAD_RATE, HEAD_RATE)}
       for name in ("lp_ft", "full_finetune")},
}  # fmt: skip


@dataclass(frozen=True)
class Situation:
    """A target data set: a pair, the mean number of images per class, and the ratio of largest to smallest class."""

    pair: str
    shots: int
    imbalance: float = 1.0

    @property
    def held_out(self) -> bool:
        """Whether the pair was held out when the rule was tuned."""
        return list(PAIRS).index(self.pair) % 2 == 1


def situations() -> list[Situation]:
    """Return all situations."""
    equal = [Situation(pair, shots) for pair in PAIRS for shots in SHOTS]
    return [*equal, *(Situation(pair, *IMBALANCED) for pair in PAIRS)]


def situation_of(row: Row) -> Situation:
    """Return the situation of a row."""
    return Situation(row["pair"], row["shots"], row["imbalance"])


def measure(situation: Situation, seed: int) -> Row:
    """Return the row of a situation: the evidence for the advice, and the test accuracy of each strategy."""
    pair = PAIRS[situation.pair]
    data = pair.data(seed, situation.shots, imbalance=situation.imbalance)
    begun = time.perf_counter()
    evidence = FineTuner(pair.model(seed), seed=seed).advise(data.train).evidence
    row: Row = {**asdict(situation), "seed": seed, "evidence": asdict(evidence), "accuracy": {}}
    row["seconds"] = {"advice": round(time.perf_counter() - begun, 3)}
    for name, arguments in CHOICES.items():
        begun = time.perf_counter()
        tuner = FineTuner(pair.model(seed), seed=seed).replace_head(pair.num_classes)
        tuner.fit(data.train, epochs=EPOCHS, batch_size=BATCH_SIZE, progress=False, **arguments)
        row["seconds"][name] = round(time.perf_counter() - begun, 3)
        row["accuracy"][name] = tuner.evaluate(data.test, batch_size=256)["accuracy"]
    return row
