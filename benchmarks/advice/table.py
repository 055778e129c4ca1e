"""The table: how often advice was right, on the held-out pairs and on those used for tuning."""

from __future__ import annotations

import platform
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.advice.situations import (
    CHOICES,
    FASTER,
    FIRST_SHARE,
    HEAD_RATE,
    STRATEGIES,
    Situation,
    situation_of,
)
from benchmarks.machine import processor
from benchmarks.rows import Row
from finetune.advice.advice import judge
from finetune.advice.evidence import Evidence

# Advice is right if its accuracy is within this distance of the best strategy.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Outcome:
    """The outcome of a situation: the mean accuracy of each strategy over the seeds, and the advice of each seed."""

    situation: Situation
    accuracy: dict[str, float]
    advised: list[str]

    def share_right(self, chosen: Iterable[str], among: Collection[str] = STRATEGIES) -> float:
        """Return the fraction of choices within the tolerance of the best of `among`."""
        best = max(self.accuracy[name] for name in among)
        return statistics.mean(self.accuracy[name] >= best - TOLERANCE for name in chosen)

    def regret(self, chosen: Iterable[str]) -> float:
        """Return the mean distance of the choices to the best accuracy."""
        return max(self.accuracy.values()) - statistics.mean(self.accuracy[name] for name in chosen)


def outcomes(rows: Iterable[Row]) -> list[Outcome]:
    """Group the rows by situation."""
    grouped: dict[Situation, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[situation_of(row)].append(row)
    return [
        Outcome(
            situation,
            {name: statistics.mean(row["accuracy"][name] for row in of_it) for name in CHOICES},
            [_advised(row) for row in of_it],
        )
        for situation, of_it in grouped.items()
    ]


def _advised(row: Row) -> str:
    """Return the advised choice."""
    advice = judge(evidence_of(row), HEAD_RATE)
    return advice.strategy if advice.lr is None else advice.strategy + FASTER


def evidence_of(row: Row) -> Evidence:
    """Return the evidence of a row, as measured by `advise`."""
    fields = row["evidence"]
    sequences = {"class_sizes": tuple(fields["class_sizes"]), "curve": tuple(map(tuple, fields["curve"]))}
    return Evidence(**{**fields, **sequences})


def write_table(path: Path, rows: list[Row]) -> None:
    """Write the table of some rows."""
    found = sorted(outcomes(rows), key=lambda outcome: astuple(outcome.situation))
    parts = {
        "held out": [outcome for outcome in found if outcome.situation.held_out],
        "tuned on": [outcome for outcome in found if not outcome.situation.held_out],
    }
    seeds = min((len(outcome.advised) for outcome in found), default=0)
    lines = [*_preamble(seeds), *_summary(parts), ""]
    for name, outcomes_of_part in parts.items():
        lines += [f"## {name.capitalize()}", "", *_details(outcomes_of_part), ""]
    path.write_text("\n".join(lines).rstrip() + "\n")


def _summary(parts: dict[str, list[Outcome]]) -> list[str]:
    """Return the table of how often the advice, and each strategy on its own, is right."""
    titles = [f"{name}, {column}" for name in parts for column in ("right", "right of all", "accuracy lost")]
    lines = [f"| choice | {' | '.join(titles)} |", "| --- |" + " ---: |" * len(titles)]
    for choice in ("advice", *CHOICES):
        cells = []
        for found in parts.values():
            chosen = [outcome.advised if choice == "advice" else [choice] for outcome in found]
            pairs = list(zip(found, chosen, strict=True))
            right = statistics.mean(outcome.share_right(names) for outcome, names in pairs)
            of_all = statistics.mean(outcome.share_right(names, CHOICES) for outcome, names in pairs)
            lost = statistics.mean(outcome.regret(names) for outcome, names in pairs)
            cells += [f"{right:.0%} of {len(found)}", f"{of_all:.0%}", f"{100 * lost:.1f}"]
        lines.append(f"| {'**advice**' if choice == 'advice' else f'always {choice}'} | {' | '.join(cells)} |")
    return lines


def _details(found: list[Outcome]) -> list[str]:
    lines = [
        f"| pair | images per class | imbalance | {' | '.join(CHOICES)} | advised | right |",
        "| --- |" + " ---: |" * (len(CHOICES) + 2) + " --- | ---: |",
    ]
    for outcome in found:
        best = max(outcome.accuracy.values())
        shown = [f"{100 * value:.1f}" for value in outcome.accuracy.values()]
        cells = [f"**{text}**" if value == best else text
                 for text, value in zip(shown, outcome.accuracy.values(), strict=True)]  # fmt: skip
        advised = ", ".join(f"{name} {outcome.advised.count(name)}" for name in CHOICES if name in outcome.advised)
        situation = outcome.situation
        lines.append(
            f"| {situation.pair} | {situation.shots} | {situation.imbalance:g} | {' | '.join(cells)} | {advised} "
            f"| {outcome.share_right(outcome.advised):.0%} |"
        )
    return lines


def _preamble(seeds: int) -> list[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "scikit-learn"))
    return [
        "# Accuracy of advice",
        "",
        f"`python -m benchmarks.advice`: test accuracy in percent, mean over {seeds} seeds, which determine images, "
        "head and order. `advise` is called once per seed, before training. Advice is right if the mean accuracy of "
        f"its strategy is at most {100 * TOLERANCE:g} point below the best of the {len(STRATEGIES)} strategies at "
        "their default rates. Advice may also recommend larger rates below the head, from "
        f"{FIRST_SHARE:g} of the head's rate in the first stage on, marked `{FASTER.strip(', ')}`. `right of all` "
        "compares with the best of all columns, including these, and `accuracy lost` is the mean distance to that in "
        "points. The rule was tuned on every other pair; the rest are held out.",
        "",
        f"{processor()}, 1 thread, Python {platform.python_version()}, {packages}.",
        "",
    ]
