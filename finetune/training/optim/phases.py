"""A strategy is a list of phases; a phase says what trains, for how long, and at which rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import ArgumentError
from finetune.training.optim.rates import Rate
from finetune.training.optim.schedules import Schedule


@dataclass(frozen=True)
class Phase:
    """One part of a training run with one set of trainable parameters.

    Attributes:
        train: patterns of what is trainable, everything else is frozen; None leaves the freeze state
            as it stands.
        epochs: how many, at least 1.
        lr: learning rates as `fit` takes them; None for those that `fit` was given.
        schedule: a name or a function of progress over this phase; None for what `fit` was given.
        name: what history and progress call it.
        start_from: the weights to begin with: a checkpoint that `save_checkpoint` wrote, or `"scratch"` for
            random ones; None to go on with those there are.
        lora_rank: give the model LoRA adapters of this rank, which `train` then names `"*lora_*"`.

    Raises:
        ArgumentError: epochs or rank are no whole number from 1 on.
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
        check_epochs(self.epochs)
        if self.lora_rank is not None and (not isinstance(self.lora_rank, int) or self.lora_rank < 1):
            raise ArgumentError(f"Expected lora_rank to be a whole number from 1 on, but got {self.lora_rank!r}.")


def check_epochs(epochs: int) -> None:
    """Check a number of epochs.

    Raises:
        ArgumentError: it is no whole number from 1 on.
    """
    if not isinstance(epochs, int) or epochs < 1:
        raise ArgumentError(f"Expected epochs to be a whole number from 1 on, but got {epochs!r}.")


def check_phases(phases: Iterable[Phase]) -> list[Phase]:
    """Return the phases of a strategy as a list.

    Raises:
        ArgumentError: it is empty, or holds something else.
    """
    listed: list[Phase] = list(phases) if isinstance(phases, Iterable) else []
    if not listed or not all(isinstance(phase, Phase) for phase in listed):
        raise ArgumentError(
            f"Expected strategy to be a name or a list of Phase, or a function that returns one, but got {phases!r}."
        )
    return listed
