"""Where the chart's lines are, and what each quadrant advises: chosen on the pairs that are for tuning, and no others.

    python -m benchmarks.advice.fit       prints what `finetune/advice/chart.py` holds

The lines are those with which most situations are right, each quadrant advising what is right there most often; of
equals what loses least accuracy.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.advice.__main__ import RESULTS, read
from benchmarks.advice.situations import CHOICES, situation_of
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


def best_choice(cases: Sequence[Case]) -> tuple[float, float, str]:
    """Return what is right most often: the share, minus the accuracy lost, and the strategy."""
    return max(
        (
            statistics.mean(case.outcome.share_right([name]) for case in cases),
            -statistics.mean(case.outcome.regret([name]) for case in cases),
            name,
        )
        for name in CHOICES
    )


def fit(cases: Sequence[Case]) -> tuple[float, float, Mapping[Quadrant, list[Case]]]:
    """Return the lines, and the cases of each quadrant."""

    def divided(much: float, near: float) -> dict[Quadrant, list[Case]]:
        found: dict[Quadrant, list[Case]] = {}
        for case in cases:
            found.setdefault(case.quadrant(much, near), []).append(case)
        return found

    def worth(lines: tuple[float, float]) -> tuple[float, float]:
        parts = [(len(part), *best_choice(part)[:2]) for part in divided(*lines).values()]
        return sum(count * right for count, right, _ in parts), sum(count * lost for count, _, lost in parts)

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
    print(f"{len(cases)} cases; NEAR = {near}, MUCH = {much}")
    for (is_much, is_near), found in sorted(quadrants.items()):
        right, lost, name = best_choice(found)
        gain = statistics.mean(
            case.outcome.accuracy[name] - case.outcome.accuracy["linear_probe"] for case in found
        )
        sure = (right * len(found) + 1) / (len(found) + 2)  # one case of each kind added
        print(
            f"({is_much}, {is_near}): {name!r}, gain {gain:.3f}, right {sure:.2f}, lost {-lost:.3f}, "
            f"{len(found)} cases"
        )


if __name__ == "__main__":
    main()
