"""A task: train in one way on the images of one seed of a pair."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from benchmarks.pairs import PAIRS, Data
from benchmarks.rows import Row
from finetune import FineTuner, LayerDecay, Phase, strategies

TEST = 30  # test images per class


@dataclass(frozen=True)
class Way:
    """A strategy and its rates.

    Attributes:
        lr: One rate, or the rates of the first trainable stage and of the head. None uses the library's.
        decay: Factor of a `LayerDecay` of `lr`.
        second: Rate of LP-FT's second phase.
    """

    strategy: str
    lr: float | tuple[float, float] | None = None
    decay: float | None = None
    second: float | None = None

    @property
    def rates(self) -> str:
        """The rates as text."""
        spread = self.lr if isinstance(self.lr, tuple) else (self.lr,)
        first = "the default" if self.lr is None else " to ".join(f"{rate:.0e}" for rate in spread)
        decay = f" with decay {self.decay}" if self.decay else ""
        second = f", then {self.second:.0e}" if self.second else ""
        return f"{first}{decay}{second}"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `fit`."""
        lr = LayerDecay(self.lr, self.decay) if self.decay and isinstance(self.lr, float) else self.lr
        return {"strategy": self.strategy if self.second is None else self._lp_ft, "lr": lr}

    def _lp_ft(self, stages: Sequence[Any], epochs: int, lr: Any) -> list[Phase]:
        first, second = strategies.lp_ft(stages, epochs, lr)
        return [first, replace(second, lr=self.second)]


@dataclass(frozen=True)
class Task:
    """A way to train, on the images of a seed, for a number of epochs."""

    pair: str
    way: Way
    seed: int
    shots: int
    epochs: int

    @property
    def key(self) -> str:
        return repr(self)


def run(task: Task) -> Row:
    """Train and return the row: accuracy on test and shifted images, and CPU seconds of `fit`."""
    pair, data = PAIRS[task.pair], _data(task.pair, task.seed, task.shots)
    tuner = FineTuner(pair.model(task.seed), device="cpu", seed=task.seed).replace_head(pair.num_classes, layer="head")
    begun = time.process_time()
    tuner.fit(data.train, epochs=task.epochs, progress=False, **task.way.arguments())
    seconds = time.process_time() - begun
    return {
        "key": task.key,
        **asdict(task),
        "accuracy": tuner.evaluate(data.test, batch_size=250)["accuracy"],
        "shifted": tuner.evaluate(data.shifted, batch_size=250)["accuracy"],
        "seconds": round(seconds, 4),
        "images": len(data.train[1]) * task.epochs,
    }


@lru_cache(maxsize=8)
def _data(pair: str, seed: int, shots: int) -> Data:
    return PAIRS[pair].data(seed, shots, test=TEST)
