"""Phases of training: a strategy is a list of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.optim import Optimizer

from finetune.errors import ArgumentError, some_of, whole_number
from finetune.training.optim.rates import Rate
from finetune.training.optim.schedules import Schedule


@dataclass(frozen=True)
class Phase:
    """One part of a training run, with its own trainable parameters, length and learning rates.

    Attributes:
        train: Patterns of the trainable parameters; everything else is frozen. None keeps the current freeze state.
        epochs: Number of epochs, at least 1.
        lr: Learning rates as in `fit`; None for those passed to `fit`.
        schedule: Name of a schedule, or a function of progress through this phase; None for the one passed to `fit`.
        name: Name in the history and the progress display.
        start_from: Weights to start from: the path of a checkpoint, or `"scratch"` to reinitialize the model. None
            continues from the current weights.
        lora_rank: Rank of LoRA adapters to add, which `train` can name with `"*lora_*"`; None adds none.

    Raises:
        ArgumentError: If `epochs` or `lora_rank` is not a whole number of at least 1.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> tuner = FineTuner(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), device="cpu")
        >>> phases = [Phase("1", epochs=1, lr=1e-2, name="head"), Phase("*", epochs=2, lr=(1e-4, 1e-3), name="all")]
        >>> history = tuner.fit((torch.randn(8, 4), torch.arange(8) % 2), strategy=phases)
        >>> [row["phase"] for row in history]
        ['head', 'all', 'all']
    """

    train: str | Iterable[str] | None = None
    epochs: int = 1
    lr: Rate | None = None
    schedule: str | Schedule | None = None
    name: str = "fit"
    start_from: str | Path | None = None
    lora_rank: int | None = None

    def __post_init__(self) -> None:
        if self.train is not None and not isinstance(self.train, str):
            object.__setattr__(self, "train", tuple(self.train))
        object.__setattr__(self, "epochs", whole_number("epochs", self.epochs))
        if self.lora_rank is not None:
            object.__setattr__(self, "lora_rank", whole_number("lora_rank", self.lora_rank))


def check_phases(phases: Iterable[Phase]) -> list[Phase]:
    """Return the phases of a strategy as a list.

    Raises:
        ArgumentError: If there are no phases, or an item is not a `Phase`.
    """
    listed: list[Phase] = list(phases) if isinstance(phases, Iterable) else []
    if not listed or not all(isinstance(phase, Phase) for phase in listed):
        raise ArgumentError(
            f"Expected strategy to be a name or a list of Phase, or a function that returns one, but got {phases!r}."
        )
    return listed


def check_freeze_state(
    phase: Phase, planned: Iterable[str], trainable: Mapping[str, Tensor], optimizer: Optimizer
) -> None:
    """Check that the trainable parameters are still those of the optimizer of a phase.

    Args:
        phase: The phase.
        planned: Names of the parameters in its optimizer.
        trainable: Parameters that are trainable now, by name.
        optimizer: The optimizer.

    Raises:
        ArgumentError: If a callback or a step has frozen, unfrozen or replaced some.
    """
    before, now = set(planned), set(trainable)
    for names, became in ((now - before, "trainable"), (before - now, "frozen")):
        if names:
            raise ArgumentError(
                f"{some_of(sorted(names))} became {became} within phase {phase.name!r}, whose optimizer was built for "
                "other parameters. Pass fit a strategy with one phase per freeze state, such as strategy="
                f"[Phase('fc', epochs=1), Phase('*', epochs=2)], instead of freezing or unfreezing in a callback or "
                "a step."
            )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if replaced := [name for name, parameter in trainable.items() if id(parameter) not in held]:
        raise ArgumentError(
            f"{some_of(replaced)} became another parameter within phase {phase.name!r}, whose optimizer does not train "
            "it. Replace layers before fit, or copy values into a parameter, as in parameter.data.copy_(values)."
        )
