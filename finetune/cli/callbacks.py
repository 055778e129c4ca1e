"""Callbacks and loggers by the options of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.errors import one_of

if TYPE_CHECKING:
    from finetune.training.callbacks.base import Callback
    from finetune.training.callbacks.loggers.logger import Logger

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")

Log = Annotated[
    list[str] | None,
    typer.Option(help="Logger: csv, tensorboard, wandb or mlflow, also with a place as in wandb:dogs. Repeatable."),
]


def callbacks_of(options: Mapping[str, Any]) -> list[Callback]:
    """Return the callbacks that the options of `train` ask for.

    Args:
        options: Values by the names of the options.

    Raises:
        ArgumentError: If a value is invalid, or a logger's package is missing.
    """
    from finetune import callbacks

    mixes = options["mixup"], options["cutmix"]
    makers: dict[str, Callable[[Any], Callback]] = {
        "class_weights": lambda _: callbacks.ClassWeights(),
        "ema": callbacks.EMA,
        "swa": callbacks.SWA,
        "l2sp": callbacks.L2SP,
        "early_stopping": lambda patience: callbacks.EarlyStopping(patience=patience),
        "skip_non_finite": callbacks.SkipNonFinite,
        "report": callbacks.Report,
    }
    mixing: list[Callback] = [callbacks.Mixup(*(alpha or 0.0 for alpha in mixes))] if any(mixes) else []
    chosen = [make(options[name]) for name, make in makers.items() if options[name] not in (None, False)]
    return [*mixing, *chosen, *loggers_of(options["log"], options["out"])]


def loggers_of(names: Sequence[str] | None, output: Path) -> list[Logger]:
    """Return the loggers of these names. Without a place of their own, they are named after an output.

    Args:
        names: Names of loggers, each with a place after a colon or without one.
        output: Path of the file or folder that the command writes.

    Raises:
        ArgumentError: If there is no such logger, or its package is missing.
    """
    return [*_loggers(names or [], output)]


def _loggers(names: Sequence[str], output: Path) -> Iterator[Logger]:
    from finetune import callbacks

    for each in names:
        name, _, place = each.partition(":")
        kind = one_of("logger", name, LOGGERS, "one of these with a place, such as csv:log.csv")
        if kind == "csv":
            yield callbacks.CSVLogger(place or output.with_suffix(".csv"))
        elif kind == "tensorboard":
            yield callbacks.TensorBoard(place or output.parent / "runs" / output.stem)
        elif kind == "wandb":
            yield callbacks.WeightsAndBiases(place or None, name=output.stem)
        else:
            yield callbacks.MLflow(place or "Default", name=output.stem)
