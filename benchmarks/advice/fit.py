"""Fit the boundaries of the chart and the advice of each quadrant, on the tuning half of the pairs only.

    python -m benchmarks.advice.fit       # prints the constants of `finetune/advice/chart.py`

The default advice is the strategy that loses the least accuracy over all situations. One side of the chart, near or
far, or one quadrant gets other advice only if that is better by more than a standard error, because the best strategy
in a few situations is often best by chance. The boundaries maximize the number of cases within a point of the best,
and among equals, minimize the loss of accuracy.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.advice.__main__ import RESULTS, read
from benchmarks.advice.situations import CHOICES, FASTER, FIRST_SHARE, situation_of
from benchmarks.advice.table import Outcome, evidence_of, outcomes

# Candidate boundaries, between the measured situations.
_NEAR = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
_MUCH = (8.0, 20.0, 60.0)

Quadrant = tuple[bool, bool]


@dataclass(frozen=True)
class Case:
    """One seed of a situation: its place in the chart and the outcome."""

    samples: float
    nearness: float
    outcome: Outcome

    def quadrant(self, much: float, near: float) -> Quadrant:
        """Return whether there is much data, and whether the target is near."""
        return self.samples >= much, self.nearness >= near


def least_lost(cases: Sequence[Case]) -> str:
    """Return the strategy that loses the least accuracy."""
    return min(CHOICES, key=lambda name: statistics.mean(case.outcome.regret([name]) for case in cases))


def choice(cases: Sequence[Case], usual: str) -> str:
    """Return the best strategy of these cases if it beats the usual one by more than a standard error, else that."""
    best = least_lost(cases)
    situations = {case.outcome.situation: case.outcome.accuracy for case in cases}
    gains = [accuracy[best] - accuracy[usual] for accuracy in situations.values()]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 2 else float("inf")
    return best if statistics.mean(gains) > error else usual


def share_right(cases: Sequence[Case], name: str) -> float:
    """Return the fraction of cases in which a strategy is right."""
    return statistics.mean(case.outcome.share_right([name]) for case in cases)


def fit(cases: Sequence[Case]) -> tuple[float, float, Mapping[Quadrant, tuple[str, list[Case]]]]:
    """Return the boundaries, and the advice and the cases of each quadrant."""
    usual = least_lost(cases)

    def divided(much: float, near: float) -> dict[Quadrant, tuple[str, list[Case]]]:
        found: dict[Quadrant, list[Case]] = {}
        sides: dict[bool, list[Case]] = {}
        for case in cases:
            place = case.quadrant(much, near)
            found.setdefault(place, []).append(case)
            sides.setdefault(place[1], []).append(case)
        of_side = {side: choice(part, usual) for side, part in sides.items()}
        return {place: (choice(part, of_side[place[1]]), part) for place, part in found.items()}

    def worth(lines: tuple[float, float]) -> tuple[float, float]:
        chosen = [(name, case) for name, part in divided(*lines).values() for case in part]
        right = sum(case.outcome.share_right([name], CHOICES) for name, case in chosen)
        return right, -sum(case.outcome.regret([name]) for name, case in chosen)

    much, near = max(itertools.product(_MUCH, _NEAR), key=worth)
    return much, near, divided(much, near)


def main() -> None:
    """Print the boundaries and the quadrants."""
    rows = [row for row in read(RESULTS / "advice") if not situation_of(row).held_out]
    by_situation = {outcome.situation: outcome for outcome in outcomes(rows)}
    cases = []
    for row in rows:
        evidence = evidence_of(row)
        cases.append(Case(evidence.samples_per_class, evidence.nearness, by_situation[situation_of(row)]))
    much, near, quadrants = fit(cases)
    print(f"{len(cases)} cases; NEAR = {near}, MUCH = {much}; default {least_lost(cases)!r}")
    for (is_much, is_near), (name, found) in sorted(quadrants.items()):
        gain = statistics.mean(case.outcome.accuracy[name] - case.outcome.accuracy["linear_probe"] for case in found)
        right = (share_right(found, name) * len(found) + 1) / (len(found) + 2)  # add-one smoothing
        lost = statistics.mean(case.outcome.regret([name]) for case in found)
        share = FIRST_SHARE if name.endswith(FASTER) else None
        print(
            f"({is_much}, {is_near}): {name.removesuffix(FASTER)!r}, first_share {share}, gain {gain:.3f}, "
            f"right {right:.2f}, lost {lost:.3f}, {len(found)} cases"
        )


if __name__ == "__main__":
    main()
