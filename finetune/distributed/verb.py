"""`verb`: the guards around each method of `FineTuner` that runs the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from finetune.distributed.errors import errors_shared
from finetune.naming.arguments import checks_arguments
from finetune.signals.stops import signals_heeded
from finetune.threads.turns import takes_turns

P = ParamSpec("P")
R = TypeVar("R")


def verb(*, alone: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a method check its arguments, take its turn among threads, share its errors with other processes, and end
    at a signal where nothing is lost.

    Args:
        alone: Whether it cannot run within another verb of the same model.

    Example:
        >>> from finetune import FineTuner
        >>> FineTuner("resnet18", weights=None).fit("dogs/train", epoch=2)
        Traceback (most recent call last):
        finetune.errors.ArgumentError: fit has no argument 'epoch'. Did you mean 'epochs'?
    """

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        guarded = takes_turns(alone=alone)(errors_shared()(signals_heeded()(method)))  # type: ignore[arg-type]
        return checks_arguments(cast("Callable[P, R]", guarded))

    return decorate
