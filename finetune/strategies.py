"""Fine-tuning strategies: functions of stages, epochs and learning rates that return a list of phases.

Each takes a few lines that read like its paper. `fit(strategy=...)` accepts the name of a strategy, a custom function,
or a list of `Phase`. Use `functools.partial` to set the options of a strategy. To add a name, add an entry to
`STRATEGIES`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from finetune.errors import is_number, number, one_of, whole_number
from finetune.model.stages import Stage
from finetune.naming.functions import function_name
from finetune.training.optim.phases import Phase, check_phases
from finetune.training.optim.rates import Rate

log = logging.getLogger("finetune")

Strategy = Callable[[Sequence[Stage], int, "Rate | None"], list[Phase]]

# Factor on a single rate in the second phase of LP-FT, so that the features stay close to those that the probe saw.
# Rates that fall with depth, such as the defaults, are small enough below the head without it.
_LP_FT_FACTOR = 0.1

# Default rates for new weights, which train at full or nearly full speed in the first stage too.
_SCRATCH_RATE = 1e-3
_ADAPTER_RATES = (1e-4, 1e-3)


def linear_probe(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train the head on frozen features.

    Args:
        stages: Stages of the model, stem first.
        epochs: Number of epochs.
        lr: Learning rates as in `fit`; None for the defaults.

    Example:
        >>> stages = [Stage("backbone", ("backbone.weight",)), Stage("head", ("head.weight",))]
        >>> linear_probe(stages, epochs=3, lr=1e-2)
        [Phase(train=('head.weight',), epochs=3, lr=0.01, schedule=None, name='linear_probe', ...)]
    """
    return [Phase(_from(stages, -1), epochs, lr, name="linear_probe")]


def last_stage(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train the head and the last stage before it.

    Args:
        stages: Stages of the model, stem first.
        epochs: Number of epochs.
        lr: Learning rates as in `fit`; None for the defaults.

    Example:
        >>> stages = [Stage(name, (f"{name}.weight",)) for name in ("stem", "layer1", "head")]
        >>> last_stage(stages, epochs=3, lr=None)[0].train
        ('layer1.weight', 'head.weight')
    """
    return [Phase(_from(stages, -2), epochs, lr, name="last_stage")]


def full_finetune(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train the whole model.

    Args:
        stages: Stages of the model, stem first.
        epochs: Number of epochs.
        lr: Learning rates as in `fit`; None for the defaults.

    Example:
        >>> full_finetune([Stage("head", ("head.weight",))], epochs=3, lr=(1e-4, 1e-3))[0].train
        '*'
    """
    return [Phase("*", epochs, lr, name="full_finetune")]


def gradual_unfreezing(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train the head, then unfreeze one more stage at a time (ULMFiT, arXiv 1801.06146).

    The epochs are divided evenly among the depths. With fewer epochs than stages, several stages are unfrozen at once,
    and the last phase trains the whole model. A single epoch trains the head only.

    Args:
        stages: Stages of the model, stem first.
        epochs: Number of epochs in total.
        lr: Learning rates as in `fit`; None for the defaults.

    Raises:
        ArgumentError: If `epochs` is not a whole number of at least 1.

    Example:
        >>> stages = [Stage(name, (name,)) for name in ("stem", "layer1", "head")]
        >>> [phase.train for phase in gradual_unfreezing(stages, epochs=3, lr=None)]
        [('head',), ('layer1', 'head'), ('stem', 'layer1', 'head')]
    """
    epochs = whole_number("epochs", epochs)
    _say_if_too_short("gradual_unfreezing", epochs)
    count = min(epochs, len(stages))
    depths = [1 + (len(stages) - 1) * step // max(1, count - 1) for step in range(count)]
    lengths = [epochs * (step + 1) // count - epochs * step // count for step in range(count)]
    return [
        Phase(_from(stages, -depth), length, lr, name=f"gradual_unfreezing_{step}")
        for step, (depth, length) in enumerate(zip(depths, lengths, strict=True), 1)
    ]


def lp_ft(stages: Sequence[Stage], epochs: int, lr: Rate | None, *, probe: str | Path | None = None) -> list[Phase]:
    """Train the head, then the whole model at a small learning rate (LP-FT, arXiv 2202.10054).

    The head gets a third of the epochs; a single epoch trains the head only. The second phase trains at a tenth of
    `lr` if that is a number; rates by stage or by name are used unchanged.

    Args:
        stages: Stages of the model, stem first.
        epochs: Number of epochs in total.
        lr: Learning rates as in `fit`; None for the defaults.
        probe: Path of a checkpoint with a trained head, which replaces the first phase.

    Raises:
        ArgumentError: If `epochs` is not a whole number of at least 1.

    Example:
        >>> stages = [Stage("backbone", ("backbone.weight",)), Stage("head", ("head.weight",))]
        >>> [(phase.name, phase.epochs, phase.lr) for phase in lp_ft(stages, epochs=6, lr=0.1)]
        [('linear_probe', 2, 0.1), ('finetune', 4, 0.01...)]
    """
    epochs = whole_number("epochs", epochs)
    small = number("lr", lr) * _LP_FT_FACTOR if is_number(lr) else lr
    if probe is not None:
        return [Phase("*", epochs, small, name="finetune", start_from=probe)]
    _say_if_too_short("lp_ft", epochs)
    third = max(1, round(epochs / 3))
    first = Phase(_from(stages, -1), third, lr, name="linear_probe")
    return [first] if third == epochs else [first, Phase("*", epochs - third, small, name="finetune")]


def from_scratch(stages: Sequence[Stage], epochs: int, lr: Rate | None) -> list[Phase]:
    """Train the whole model from random weights, to measure the benefit of pretraining.

    Args:
        stages: Stages of the model, stem first.
        epochs: Number of epochs.
        lr: Learning rates as in `fit`; None for 1e-3 throughout.

    Example:
        >>> from_scratch([Stage("head", ("head.weight",))], epochs=3, lr=None)[0].start_from
        'scratch'
    """
    return [Phase("*", epochs, _SCRATCH_RATE if lr is None else lr, name="from_scratch", start_from="scratch")]


def lora(stages: Sequence[Stage], epochs: int, lr: Rate | None, *, rank: int = 8) -> list[Phase]:
    """Train the head and low-rank adapters added to the layers with PEFT (LoRA, arXiv 2106.09685).

    Args:
        stages: Stages of the model, stem first.
        epochs: Number of epochs.
        lr: Learning rates as in `fit`; None for 1e-4 in the first stage up to 1e-3 in the head.
        rank: Rank of the adapters.

    Example:
        >>> from functools import partial
        >>> partial(lora, rank=4)([Stage("head", ("head.weight",))], epochs=3, lr=None)[0].lora_rank
        4
    """
    rates = _ADAPTER_RATES if lr is None else lr
    return [Phase(("*lora_*", *_from(stages, -1)), epochs, rates, name="lora", lora_rank=rank)]


def surgical(block: str | Iterable[str]) -> Strategy:
    """Return a strategy that trains one block and the head (surgical fine-tuning, arXiv 2210.11466).

    Args:
        block: Name of the block, such as `"layer1"`, or one or more patterns as in `freeze`.

    Returns:
        The strategy, a function of stages, epochs and learning rates.

    Example:
        >>> stages = [Stage(name, (f"{name}.weight",)) for name in ("stem", "layer1", "head")]
        >>> surgical("layer1")(stages, 3, None)[0].train
        ('layer1', 'head.weight')
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
    """Look up a strategy by name; `"surgical:layer1"` is `surgical("layer1")`.

    Raises:
        ArgumentError: If the name is unknown.

    Example:
        >>> get_strategy("lp_ft") is lp_ft
        True
    """
    first, _, block = name.partition(":")
    if first == "surgical" and block:
        return surgical(block)
    known = [*STRATEGIES, "surgical:BLOCK"]
    return STRATEGIES[one_of("strategy", name, known, "a list of Phase; BLOCK is a layer such as layer1")]


def strategy_name(strategy: str | Strategy | Sequence[Phase]) -> str:
    """Return the name of a strategy, or for a list of phases, their names.

    Example:
        >>> strategy_name(lp_ft), strategy_name([Phase("head", 1, name="head"), Phase("*", 2, name="all")])
        ('lp_ft', 'head + all')
    """
    if isinstance(strategy, str):
        return strategy
    if callable(strategy):
        return function_name(strategy)
    return " + ".join(phase.name for phase in check_phases(strategy))


def _say_if_too_short(name: str, epochs: int) -> None:
    if epochs == 1:
        log.warning(f"{name} with one epoch trains the head only. Pass epochs=2 or more to train the other layers too.")


def _from(stages: Sequence[Stage], start: int) -> tuple[str, ...]:
    """Return the parameter names of the stages from index `start` to the head."""
    return tuple(name for stage in stages[start:] for name in stage.parameters)
