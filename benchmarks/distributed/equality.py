"""The same result as one process with the same global batch: weights, every loss and metric, and predictions.

Strategies x numbers of processes x 2, 3, 13, 24 and 50 samples: also fewer samples than processes, and a last short
window. The table shows the largest difference of any number, in any process, for any number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from benchmarks.distributed.training import SETUPS, End, difference, train
from benchmarks.rows import Row
from tests.helpers.worlds import in_processes

TITLE = "Equality"
ROUNDING = 5e-6

_SAMPLES = (2, 3, 13, 24, 50)
_WORLDS = (2, 3, 4)
_KINDS = {"auto": "copies", "fsdp": "parts"}


def trials(*, sample: bool) -> Iterator[tuple[str, ...]]:
    """Yield kind, set-up and number of processes."""
    for number, name in enumerate(SETUPS):
        for kind in _KINDS:
            if kind == "fsdp" and "activations" in name:
                continue  # it declines the cache
            for world in _WORLDS[number % 3 :: 3] if sample else _WORLDS:
                yield kind, name, str(world)


def run(kind: str, name: str, world: str) -> Row:
    """Return the largest difference to one process for each number of samples, and the errors of processes."""
    size, setup = int(world), SETUPS[name]
    found = in_processes(size, lambda rank: [tuple(train(setup, samples, size, kind)) for samples in _SAMPLES])
    errors = [ends for ends in found if isinstance(ends, str)]
    differences = [
        max((difference(End(*ends[i]), _alone(name, samples)) for ends in found if ends not in errors), default=0.0)
        for i, samples in enumerate(_SAMPLES)
    ]
    return {"differences": differences, "errors": errors}


def wrong(row: Row) -> bool:
    """Return whether a trial shows a fault."""
    return bool(row["errors"]) or max(row["differences"]) > ROUNDING


def table(rows: Sequence[Row]) -> str:
    """Return the largest differences by set-up and number of processes."""
    lines = [
        "| | | " + " | ".join(f"{world} processes" for world in _WORLDS) + " |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name in SETUPS:
        for kind, word in _KINDS.items():
            own = [row for row in rows if row["key"][1:3] == [kind, name]]
            largest = {row["key"][3]: f"{max(row['differences']):.0e}" for row in own}
            if own:
                lines.append(f"| {name} | {word} | " + " | ".join(largest.get(str(w), "") for w in _WORLDS) + " |")
    return "\n".join(lines)


@cache
def _alone(name: str, samples: int) -> End:
    return train(SETUPS[name], samples, 1, False)
