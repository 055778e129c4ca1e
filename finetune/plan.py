"""Plan a run: turn a strategy into phases with rates and optimizers, and try each before training starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.checkpoint.starting_weights import starting_weights
from finetune.data.randomness import seeded
from finetune.errors import ArgumentError
from finetune.model import freezing
from finetune.model.network import Network
from finetune.model.surgery import adapters
from finetune.model.surgery.changes import HeadReplacement, LoraAdapters
from finetune.strategies import Strategy, get_strategy, strategy_name
from finetune.training.numerics.precision import Precision, check_half_weights
from finetune.training.optim.optimizers import build_optimizer, rates_of, say_values
from finetune.training.optim.phases import Phase, check_phases
from finetune.training.optim.rates import Rate
from finetune.training.optim.schedules import Schedule, get_schedule
from finetune.training.progress.overview import describe_phase
from finetune.training.settings import Settings


@dataclass(frozen=True)
class Plan:
    """A training run before it starts.

    Attributes:
        network: The network with the adapters that the phases need.
        strategy: Name of the strategy; None for the freeze state as it was.
        phases: The phases, each with its own rates and schedule.
        lines: Description of each phase in one line, to print or log.
        rates: Group name and learning rate by parameter name, in the last phase.
        trains_all: Whether gradients reach the first stage in every phase.
    """

    network: Network
    strategy: str | None
    phases: tuple[Phase, ...]
    lines: tuple[str, ...]
    rates: Mapping[str, tuple[str, float]]
    trains_all: bool


def make_plan(
    network: Network,
    strategy: str | Strategy | Sequence[Phase] | None,
    *,
    epochs: int,
    lr: Rate | None,
    schedule: str | Schedule,
    settings: Settings,
    precision: Precision,
    on_error: Callable[[Callable[[], None]], Any],
) -> Plan:
    """Plan a run and try every phase: its patterns, rates, starting weights and optimizer.

    Args:
        network: The model to train. It is unchanged except for LoRA adapters that a phase requests.
        strategy: A name, a function, a list of phases, or None for the current freeze state.
        epochs: Passes over the training data, divided among the phases of a strategy.
        lr: Learning rates for phases without their own; None for the optimizer's defaults.
        schedule: Schedule for phases without their own.
        settings: The tuner's settings.
        precision: Number format of the forward pass.
        on_error: Registers a function to call after a later error, which removes the adapters.

    Raises:
        ArgumentError: If a strategy, schedule, rate or optimizer is invalid, or no parameter is trainable.
        PatternError: If a pattern matches nothing.
        CheckpointError: If a phase's starting weights cannot be used.
        HeadError: If the strategy needs the head and the head is ambiguous.
    """
    phases = _phases(network, strategy, epochs, lr, schedule)
    for phase in phases:
        network = _with_adapters(network, phase.lora_rank, settings.seed, on_error)
    for phase in phases:
        if phase.start_from is not None:
            starting_weights(network, phase.start_from, settings.seed)
    stages = network.stages()
    lines, trains_all, rates = [], True, {}
    head = _new_head(network)
    head_trains = not head
    with freezing.freeze_state_restored(network.module):
        for phase in phases:
            if phase.train is not None:
                freezing.train_only(network.module, phase.train)
            optimizer = build_optimizer(network.module, stages, settings.optimizer, phase.lr, settings.weight_decay)
            rates = rates_of(network.module, optimizer)
            lines.append(describe_phase(network.module, phase, optimizer))
            network = network.with_trainable()
            training = freezing.trainable(network.module).keys()
            trains_all = trains_all and training >= {*stages[0].parameters}
            head_trains = head_trains or any(parameter.requires_grad for parameter in head)
    say_values(settings.optimizer, optimizer, phases[-1].lr, settings.weight_decay)
    check_half_weights(freezing.trainable(network.module).values(), precision, stacklevel=8)
    if not head_trains:
        _warn_of_frozen_head(network.heads[0], stacklevel=8)
    name = None if strategy is None else strategy_name(strategy)
    return Plan(network, name, tuple(phases), tuple(lines), rates, trains_all)


def _phases(
    network: Network,
    strategy: str | Strategy | Sequence[Phase] | None,
    epochs: int,
    lr: Rate | None,
    schedule: str | Schedule,
) -> list[Phase]:
    """Return the strategy's phases. `lr` and `schedule` apply to phases without their own."""
    get_schedule(schedule)
    if strategy is None:
        return [Phase(None, epochs, lr, schedule)]
    if isinstance(strategy, str):
        strategy = get_strategy(strategy)
    phases = check_phases(strategy(network.trainable_stages(), epochs, lr) if callable(strategy) else strategy)
    for phase in phases:
        get_schedule(phase.schedule or schedule)
    return [
        replace(
            _within_scope(network, phase),
            lr=lr if phase.lr is None else phase.lr,
            schedule=phase.schedule or schedule,
        )
        for phase in phases
    ]


def _within_scope(network: Network, phase: Phase) -> Phase:
    """Return the phase with "everything" and LoRA referring to the parameters that PEFT has made trainable."""
    if network.scope is None or (phase.train != "*" and phase.lora_rank is None):
        return phase
    return replace(phase, train=network.everything(), lora_rank=None)


def _with_adapters(
    network: Network, rank: int | None, seed: int, on_error: Callable[[Callable[[], None]], Any]
) -> Network:
    """Add LoRA adapters of a rank to the module, unless it has them already or no phase requests any.

    Raises:
        ArgumentError: If the module has adapters of another rank, or PEFT cannot add any.
    """
    present = next((change.lora_rank for change in network.changes if isinstance(change, LoraAdapters)), None)
    if rank is None or rank == present:
        return network
    if present is not None:
        raise ArgumentError(
            f"The model has LoRA adapters of rank {present}, so adapters of rank {rank} cannot be added. Use rank "
            f"{present}, or start from the model without adapters."
        )
    layers = adapters.lora_targets(network.module, network.required_heads())
    with seeded(seed, "lora"):
        on_error(adapters.add_lora(network.module, layers, rank))
    return network.with_adapters(LoraAdapters(rank, tuple(layers)))


def _new_head(network: Network) -> list[Any]:
    """Return the parameters of a head that may still be random, or none if the head is pretrained."""
    replaced = network.scope is not None or any(isinstance(change, HeadReplacement) for change in network.changes)
    return list(network.module.get_submodule(network.required_heads()[0]).parameters()) if replaced else []


def _warn_of_frozen_head(name: str, stacklevel: int) -> None:
    warnings.warn(
        f"The head {name!r} is frozen, so it stays random if it is new. Train it with unfreeze({name!r}), or with PEFT "
        f"name it in modules_to_save.",
        stacklevel=stacklevel,
    )
