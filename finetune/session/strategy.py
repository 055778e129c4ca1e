"""From what `fit` is given as a strategy to phases, and to what these need of the model before they train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finetune.checkpoint import restore
from finetune.checkpoint.schema import LoraAdapters, ModelChange
from finetune.data.randomness import seeded
from finetune.errors import ArgumentError
from finetune.model import catalog
from finetune.model.stages import Stage
from finetune.model.surgery import peft
from finetune.model.surgery.reinitialize import fresh_weights
from finetune.strategies import Strategy, get_strategy
from finetune.training.optim.phases import Phase, check_phases
from finetune.training.optim.rates import Rate
from finetune.training.optim.schedules import Schedule, get_schedule


def phases_of(
    strategy: str | Strategy | Sequence[Phase] | None,
    stages: Callable[[], Sequence[Stage]],
    epochs: int,
    lr: Rate | None,
    schedule: str | Schedule,
) -> list[Phase]:
    """Return the phases of a strategy, each with rates and a schedule of its own or else those given.

    Raises:
        ArgumentError: the strategy is none, or the schedule of `fit` or of a phase.
    """
    get_schedule(schedule)
    if strategy is None:
        return [Phase(None, epochs, lr, schedule)]
    if isinstance(strategy, str):
        strategy = get_strategy(strategy)
    phases = check_phases(strategy(stages(), epochs, lr) if callable(strategy) else strategy)
    for phase in phases:
        get_schedule(phase.schedule or schedule)
    return [
        replace(phase, lr=lr if phase.lr is None else phase.lr, schedule=phase.schedule or schedule) for phase in phases
    ]


def starting_weights(
    model: nn.Module, start_from: str | Path, source: Mapping[str, Any] | None, seed: int
) -> Mapping[str, Tensor]:
    """Return the weights that a phase starts from; `source` is how to make the model by its name, if it has one.

    Raises:
        ArgumentError: the model cannot be reset.
        CheckpointError: the file is damaged, or of another model.
    """
    if start_from != "scratch":
        return restore.starting_weights(Path(start_from), model)
    with seeded(seed, "scratch"):
        return fresh_weights(model, None if source is None else catalog.rebuild(source))


def add_lora(
    model: nn.Module, heads: Sequence[str], rank: int, done: Sequence[ModelChange], seed: int
) -> tuple[LoraAdapters, Callable[[], None]] | None:
    """Give the model LoRA adapters; return what loading has to repeat and what undoes it, None if it has them.

    Args:
        done: what was changed of the model so far.

    Raises:
        ArgumentError: it has adapters of another rank, or PEFT cannot give it any.
    """
    given = next((change.lora_rank for change in done if isinstance(change, LoraAdapters)), None)
    if given == rank:
        return None
    if given is not None:
        raise ArgumentError(
            f"The model has LoRA adapters of rank {given}, so it cannot have some of rank {rank} too. Use rank "
            f"{given}, or begin with the model without adapters."
        )
    layers = peft.lora_targets(model, heads)
    with seeded(seed, "lora"):
        undo = peft.add_lora(model, layers, rank)
    return LoraAdapters(rank, tuple(layers)), undo
