"""Named strategies: pure functions of the stages, the epochs and the rates to a list of phases.

Each is a few lines that read like its paper; a list of `Phase` of one's own works the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finetune.errors import ArgumentError, nearest
from finetune.model.stages import Stage
from finetune.training.phases import Phase, check_epochs
from finetune.training.rates import Rate

Strategy = Callable[[Sequence[Stage], int, "Rate | None"], list[Phase]]


def linear_probe(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train the head alone."""
    return [Phase(_from(stages, -1), epochs, lr, name="linear_probe")]


def last_stage(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train the head and the stage before it."""
    return [Phase(_from(stages, -2), epochs, lr, name="last_stage")]


def full_finetune(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train everything."""
    return [Phase("*", epochs, lr, name="full_finetune")]


def gradual_unfreezing(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train the head, then one stage more at a time (ULMFiT, arXiv 1801.06146).

    The epochs are shared out over the depths; with fewer epochs than stages, several stages join at
    once, and all train in the last phase. A single epoch is the head's.
    """
    check_epochs(epochs)
    count = min(epochs, len(stages))
    depths = [1 + (len(stages) - 1) * step // max(1, count - 1) for step in range(count)]
    lengths = [epochs * (step + 1) // count - epochs * step // count for step in range(count)]
    return [
        Phase(_from(stages, -depth), length, lr, name=f"gradual_unfreezing_{step}")
        for step, (depth, length) in enumerate(zip(depths, lengths, strict=True), 1)
    ]


def lp_ft(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train the head first, then all at a small rate (LP-FT, arXiv 2202.10054). A single epoch is the head's."""
    check_epochs(epochs)
    probe = max(1, epochs // 2)
    first = Phase(_from(stages, -1), probe, lr, name="linear_probe")
    return [first] if probe == epochs else [first, Phase("*", epochs - probe, 5e-5, name="finetune")]


STRATEGIES: dict[str, Strategy] = {
    strategy.__name__: strategy
    for strategy in (linear_probe, last_stage, full_finetune, gradual_unfreezing, lp_ft)
}


def get_strategy(name: str) -> Strategy:
    """Return the strategy of that name.

    Raises:
        ArgumentError: there is none.
    """
    if name not in STRATEGIES:
        raise ArgumentError(
            f"There is no strategy {name!r}.{nearest(name, STRATEGIES)} Expected one of {', '.join(STRATEGIES)}, or a "
            f"list of Phase."
        )
    return STRATEGIES[name]


def _from(stages: Sequence[Stage], start: int) -> tuple[str, ...]:
    """Return the parameters of the stages from `start`, counted from the end, to the head."""
    return tuple(name for stage in stages[start:] for name in stage.parameters)
