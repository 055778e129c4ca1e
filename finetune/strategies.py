"""Named strategies: pure functions of the stages, the epochs and the rates to a list of phases.

Each is a few lines that read like its paper. `fit(strategy=...)` takes a name, such a function of one's own, or a list
of `Phase`; `functools.partial` sets the options of those that have some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from finetune.errors import ArgumentError, nearest
from finetune.model.stages import Stage
from finetune.training.optim.phases import Phase, check_epochs
from finetune.training.optim.rates import Rate

Strategy = Callable[[Sequence[Stage], int, "Rate | None"], list[Phase]]

# What LP-FT's second phase has of one rate for all, so that the features stay near to what the probe was trained on.
# Rates that fall with depth, as the default ones do, are small enough below the head as they are.
_SECOND_SHARE = 0.1

# Where the user names none: what is new learns as fast in the first stage as it does elsewhere, or nearly.
_SCRATCH_RATE = 1e-3
_ADAPTER_RATES = (1e-4, 1e-3)


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


def lp_ft(stages: Sequence[Stage], epochs: int, lr: Rate | None, *, probe: str | Path | None = None) -> list[Phase]:
    """Train the head first, then all at a small rate (LP-FT, arXiv 2202.10054). A single epoch is the head's.

    The head has a third of the epochs; with `probe`, a checkpoint in which it is trained already, none. Then all
    train at a tenth of `lr` if that is a number; rates that differ by stage or name stay as they are.
    """
    check_epochs(epochs)
    small = lr * _SECOND_SHARE if isinstance(lr, (int, float)) else lr
    if probe is not None:
        return [Phase("*", epochs, small, name="finetune", start_from=probe)]
    third = max(1, round(epochs / 3))
    first = Phase(_from(stages, -1), third, lr, name="linear_probe")
    return [first] if third == epochs else [first, Phase("*", epochs - third, small, name="finetune")]


def from_scratch(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train everything from random weights: what the pretrained ones are worth."""
    return [Phase("*", epochs, _SCRATCH_RATE if lr is None else lr, name="from_scratch", start_from="scratch")]


def lora(stages: Sequence[Stage], epochs: int, lr: Rate | None, *, rank: int = 8) -> list[Phase]:
    """Train the head and adapters of a low rank beside the layers, through PEFT (LoRA, arXiv 2106.09685)."""
    rates = _ADAPTER_RATES if lr is None else lr
    return [Phase(("*lora_*", *_from(stages, -1)), epochs, rates, name="lora", lora_rank=rank)]


def surgical(block: str | Iterable[str]) -> Strategy:
    """Return the strategy that trains one block and the head (surgical fine-tuning, arXiv 2210.11466).

    Args:
        block: its name, such as `"layer1"`, or a pattern or several as `freeze` takes them.
    """
    named = (block,) if isinstance(block, str) else tuple(block)

    def surgical(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
        return [Phase((*named, *_from(stages, -1)), epochs, lr, name=f"surgical_{'_'.join(named)}")]

    return surgical


STRATEGIES: dict[str, Strategy] = {
    strategy.__name__: strategy
    for strategy in (linear_probe, last_stage, full_finetune, gradual_unfreezing, lp_ft, from_scratch, lora)
}


def get_strategy(name: str) -> Strategy:
    """Return the strategy of that name; `"surgical:layer1"` is `surgical("layer1")`.

    Raises:
        ArgumentError: there is none.
    """
    first, _, block = name.partition(":")
    if first == "surgical" and block:
        return surgical(block)
    if name not in STRATEGIES:
        raise ArgumentError(
            f"There is no strategy {name!r}.{nearest(name, [*STRATEGIES, 'surgical'])} Expected one of "
            f"{', '.join(STRATEGIES)}, 'surgical:' and the name of a block as 'surgical:layer1', or a list of Phase."
        )
    return STRATEGIES[name]


def _from(stages: Sequence[Stage], start: int) -> tuple[str, ...]:
    """Return the parameters of the stages from `start`, counted from the end, to the head."""
    return tuple(name for stage in stages[start:] for name in stage.parameters)
