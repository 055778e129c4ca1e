"""Where the chart's lines are, and what each quadrant advises: chosen on the pairs that are for tuning, and no others.

    python -m benchmarks.advice.fit       prints what `finetune/advice/chart.py` holds

What loses least accuracy over all situations is advised, unless something else loses less on a side of the chart, near
or far, by more than a standard error, or in a quadrant of that side: what is best in few situations is often so by
chance. The lines are those with which most cases are within a point of the best of all; of equals those that lose
least.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.advice.__main__ import RESULTS, read
from benchmarks.advice.situations import CHOICES, FASTER, FIRST_SHARE, situation_of
from benchmarks.advice.table import Outcome, evidence_of, outcomes

# Lines between the measured situations, not through them.
_NEAR = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
_MUCH = (8.0, 20.0, 60.0)

Quadrant = tuple[bool, bool]


@dataclass(frozen=True)
class Case:
    """One seed of a situation: where it lies, and what was right there."""

    samples: float
    nearness: float
    outcome: Outcome

    def quadrant(self, much: float, near: float) -> Quadrant:
        """Return whether there is much data, and whether it is near."""
        return self.samples >= much, self.nearness >= near


def least_lost(cases: Sequence[Case]) -> str:
    """Return the strategy that loses least accuracy."""
    return min(CHOICES, key=lambda name: statistics.mean(case.outcome.regret([name]) for case in cases))


def choice(cases: Sequence[Case], usual: str) -> str:
    """Return what is best in these cases, if it is better than what is best otherwise by more than a standard error."""
    best = least_lost(cases)
    situations = {case.outcome.situation: case.outcome.accuracy for case in cases}
    gains = [accuracy[best] - accuracy[usual] for accuracy in situations.values()]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 2 else float("inf")
    return best if statistics.mean(gains) > error else usual


def share_right(cases: Sequence[Case], name: str) -> float:
    """Return how often a strategy is right in these cases."""
    return statistics.mean(case.outcome.share_right([name]) for case in cases)


def fit(cases: Sequence[Case]) -> tuple[float, float, Mapping[Quadrant, tuple[str, list[Case]]]]:
    """Return the lines, and of each quadrant what it advises, and its cases."""
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
    """Print the lines and the quadrants."""
    rows = [row for row in read(RESULTS / "advice") if not situation_of(row).held_out]
    by_situation = {outcome.situation: outcome for outcome in outcomes(rows)}
    cases = []
    for row in rows:
        evidence = evidence_of(row)
        cases.append(Case(evidence.samples_per_class, evidence.nearness, by_situation[situation_of(row)]))
    much, near, quadrants = fit(cases)
    print(f"{len(cases)} cases; NEAR = {near}, MUCH = {much}; usually {least_lost(cases)!r}")
    for (is_much, is_near), (name, found) in sorted(quadrants.items()):
        gain = statistics.mean(case.outcome.accuracy[name] - case.outcome.accuracy["linear_probe"] for case in found)
        sure = (share_right(found, name) * len(found) + 1) / (len(found) + 2)  # one case of each kind added
        lost = statistics.mean(case.outcome.regret([name]) for case in found)
        share = FIRST_SHARE if name.endswith(FASTER) else None
        print(
            f"({is_much}, {is_near}): {name.removesuffix(FASTER)!r}, first_share {share}, gain {gain:.3f}, "
            f"right {sure:.2f}, lost {lost:.3f}, {len(found)} cases"
        )


if __name__ == "__main__":
    main()
