"""The report: a verdict on each claim, and the measurements behind it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.pairs import PAIRS
from benchmarks.strategies.plan import (
    BY_SHOTS,
    CHOSEN,
    EPOCHS,
    SEEDS,
    SETTINGS,
    SETTINGS_OF,
    SHOTS,
    SHOTS_SEEDS,
    SIDES,
    Measured,
)
from benchmarks.strategies.task import TEST
from finetune.comparison.statistics import half_width


@dataclass(frozen=True)
class Claim:
    """A claim that one side is better than another by a measure."""

    text: str
    above: str
    below: str
    measure: str = "accuracy"

    @property
    def settings(self) -> list[str]:
        """The settings in which both sides are run."""
        return [setting for setting, sides in SETTINGS_OF.items() if {self.above, self.below} <= {*sides}]


CLAIMS = {
    "Few images of a new task": (
        Claim("Fine-tuned above frozen", "fine-tuned", "frozen"),
        Claim("Frozen above from scratch", "frozen", "from scratch"),
        Claim("Fine-tuned above from scratch", "fine-tuned", "from scratch"),
        Claim("Partly frozen, the last stage, above fine-tuned", "last stage", "fine-tuned"),
    ),
    "LP-FT, arXiv 2202.10054": (
        Claim("LP-FT above the probe", "LP-FT", "frozen"),
        Claim("LP-FT above fine-tuned", "LP-FT", "fine-tuned"),
        Claim("LP-FT above the probe on shifted images", "LP-FT", "frozen", "shifted"),
        Claim("LP-FT above fine-tuned on shifted images", "LP-FT", "fine-tuned", "shifted"),
        Claim("The probe above fine-tuned on shifted images", "frozen", "fine-tuned", "shifted"),
    ),
    "Gradual unfreezing, arXiv 1801.06146": (
        Claim("Gradual unfreezing above all at once", "gradual", "fine-tuned"),
        Claim("Gradual unfreezing above all at once on shifted images", "gradual", "fine-tuned", "shifted"),
    ),
    "Discriminative rates, arXiv 1801.06146 and 2106.08254": (
        Claim("A pair of rates, spread geometrically, above one rate", "fine-tuned", "one rate"),
        Claim("Layer decay of 0.75 above one rate", "layer decay", "one rate"),
    ),
}


@dataclass(frozen=True)
class Estimate:
    """A mean and the half-width of its 95 % interval by Student's t, as fractions."""

    mean: float
    half: float

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies above or below zero, else 0."""
        return (self.mean - self.half > 0) - (self.mean + self.half < 0)

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ± {100 * self.half:.1f}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean and its interval, or None for fewer than three values."""
    half = half_width(values) if len(values) >= 3 else None
    return None if half is None else Estimate(statistics.mean(values), half)


def differences(measured: Measured, claim: Claim, pair: str, setting: str) -> list[float]:
    """Return the differences between the sides of a claim, one per seed for which both are measured."""
    both = [[measured.row(pair, side, seed, setting) for side in (claim.above, claim.below)] for seed in SEEDS]
    return [above[claim.measure] - below[claim.measure] for above, below in both if above and below]


def verdict(by_pair: Sequence[Sequence[float]]) -> str:
    """Return the verdict on a claim from the differences of each pair, one per seed."""
    means = [statistics.mean(values) for values in by_pair if values]
    whole = estimate(means)
    if whole is None:
        return "not measured yet"
    word = {1: "held", -1: "did not hold, the opposite did", 0: "undecided"}[whole.sign]
    signs = [found.sign for found in map(estimate, by_pair) if found]
    runs = estimate([value for values in by_pair for value in values])
    return (
        f"**{word}**: {whole} points over {len(means)} pairs ({runs} over all runs); clearly above in "
        f"{signs.count(1)} pairs, clearly below in {signs.count(-1)}"
    )


def table(measured: Measured, backbones: Mapping[str, float], machine: str = "") -> str:
    """Return the report as Markdown.

    Args:
        backbones: Accuracy of each backbone on its source domain.
        machine: Description of the machine and the versions.
    """
    parts = [_preamble(machine, measured, backbones), _verdicts(measured), _by_shots(measured), _rates(measured)]
    parts += [_accuracies(measured, setting) for setting in SETTINGS]
    parts += [_differences(measured, title, claims) for title, claims in CLAIMS.items()]
    return "\n\n".join(parts) + "\n"


def _preamble(machine: str, measured: Measured, backbones: Mapping[str, float]) -> str:
    budget = ", ".join(f"{epochs} at {shots} shots" for shots, epochs in EPOCHS.items())
    accuracies = [f"{name}: {accuracy:.0%}" for name, accuracy in backbones.items()]
    done = measured.complete_seeds
    unfinished = f" **The run is unfinished: {done} of {len(SEEDS)} seeds are complete.**" if done < len(SEEDS) else ""
    return (
        f"# Strategies, measured\n\n"
        f"`python -m benchmarks.strategies`: the pairs of `benchmarks.pairs`, {len(SEEDS)} seeds, {SHOTS} training "
        f"images per class unless stated otherwise, {TEST} test images per class. All sides of a comparison train on "
        f"the same images for the same number of epochs ({budget}), in batches of 32, with the defaults of `fit`; the "
        f"seed determines images, head and order. Shifted test images are rotated, fainter, blurred and have "
        f"different noise.{unfinished}\n\n"
        f"Differences are paired by seed, in percentage points, with 95 % intervals by Student's t: for a pair, over "
        f"the seeds; for all pairs, over the means of the pairs, so that the interval generalizes to similar pairs "
        f"(some pairs share a backbone, so it is somewhat too narrow). A claim **held** if that interval lies above "
        f"zero, **did not hold** if it lies below, and is **undecided** otherwise. With *default rates*, every side "
        f"uses the library's; with *chosen rates*, each side uses the best of a small grid, the same for all pairs, "
        f"by the mean accuracy over the pairs on one other seed.\n\n"
        f"Accuracy of the backbones on held-out images of their own classes: {'; '.join(accuracies)}.\n\n{machine}"
    )


def _verdicts(measured: Measured) -> str:
    lines = ["## Verdicts"]
    for title, claims in CLAIMS.items():
        lines.append(f"\n{title}:\n")
        for claim in claims:
            for setting in claim.settings:
                found = verdict([differences(measured, claim, pair, setting) for pair in measured.pairs])
                lines.append(f"- {claim.text}, {setting}: {found}.")
    return "\n".join(lines)


def _by_shots(measured: Measured) -> str:
    """Return accuracy and speed by shots, over the pairs that are complete for all sides and seeds."""
    lines = [
        "## Frozen, partly frozen, fine-tuned: accuracy and throughput\n",
        f"Chosen rates, {len(SHOTS_SEEDS)} seeds. Accuracy is the mean over pairs and seeds. Training images per "
        "second and seconds are medians over whole calls of `fit`, in CPU time, which depends less on other load.\n",
        f"| shots | epochs | pairs | {' | '.join(BY_SHOTS)} |",
        "| --- | --- | --- |" + " --- |" * len(BY_SHOTS),
    ]
    for shots, epochs in EPOCHS.items():
        found = {side: {pair: [measured.row(pair, side, seed, CHOSEN, shots) for seed in SHOTS_SEEDS]
                        for pair in measured.pairs} for side in BY_SHOTS}  # fmt: skip
        whole = [pair for pair in measured.pairs if all(all(found[side][pair]) for side in BY_SHOTS)]
        cells = []
        for side in BY_SHOTS if whole else ():
            rows = [row for pair in whole for row in found[side][pair] if row]
            accuracy = statistics.mean(row["accuracy"] for row in rows)
            speed = statistics.median(row["images"] / row["seconds"] for row in rows)
            seconds = statistics.median(row["seconds"] for row in rows)
            cells.append(f"{accuracy:.3f}, {speed:,.0f}/s, {seconds:.2f} s")
        if cells:
            lines.append(f"| {shots} | {epochs} | {len(whole)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rates(measured: Measured) -> str:
    lines = [
        "## Rates\n",
        "Mean accuracy over the pairs on the tuning seed. The first entry of a side is the default; the chosen one is "
        "bold. Of two rates, the first is for the first trainable stage and the second for the head.\n",
        "| side | rates and accuracy |",
        "| --- | --- |",
    ]
    for side in SIDES:
        cells = []
        for way in measured.grid(side):
            accuracy = measured.tuning(way)
            text = f"{way.rates}: {'not measured yet' if accuracy is None else f'{accuracy:.3f}'}"
            cells.append(f"**{text}**" if way == measured.chosen.get(side) else text)
        lines.append(f"| {side} | {'; '.join(cells)} |")
    return "\n".join(lines)


def _accuracies(measured: Measured, setting: str) -> str:
    sides = SETTINGS_OF[setting]
    lines = [
        f"## Accuracy with {setting}\n",
        "Means over the seeds, on test images and, after the slash, on shifted ones.\n",
        f"| pair | backbone | {' | '.join(sides)} |",
        "| --- | --- |" + " --- |" * len(sides),
    ]
    for pair in measured.pairs:
        cells = []
        for side in sides:
            found = [row for seed in SEEDS if (row := measured.row(pair, side, seed, setting))]
            means = [statistics.mean(row[name] for row in found) for name in ("accuracy", "shifted") if found]
            cells.append(" / ".join(f"{mean:.3f}" for mean in means))
        lines.append(f"| {pair} | {PAIRS[pair].network} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _differences(measured: Measured, title: str, claims: Sequence[Claim]) -> str:
    columns = [(claim, setting) for claim in claims for setting in claim.settings]
    lines = [
        f"## {title}\n",
        f"| pair | {' | '.join(f'{claim.text}, {setting}' for claim, setting in columns)} |",
        "| --- |" + " --- |" * len(columns),
    ]
    for pair in measured.pairs:
        cells = [estimate(differences(measured, claim, pair, setting)) for claim, setting in columns]
        lines.append(f"| {pair} | {' | '.join('' if cell is None else str(cell) for cell in cells)} |")
    return "\n".join(lines)
