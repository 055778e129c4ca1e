"""Arguments and options that several commands share, and the values that their texts stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.errors import ArgumentError, one_of
from finetune.naming.paths import exists, local_path

if TYPE_CHECKING:
    from finetune.training.optim.rates import Rate
    from finetune.tuner import FineTuner

Data = Annotated[str, typer.Argument(help="Folder with one subfolder per class, or a CSV or Parquet table.")]
File = Annotated[Path, typer.Argument(help="Checkpoint written by train.")]
Val = Annotated[
    str | None, typer.Option(help="Validation data, a fraction to hold out, or none. Default: hold out a fifth.")
]
Model = Annotated[list[str], typer.Option(help="Model name. Repeatable.")]
Weights = Annotated[str, typer.Option(help="Weights: DEFAULT, another name, a file, or none.")]
LearningRate = Annotated[str | None, typer.Option(help="Learning rate, or two as 1e-4,1e-3 (first stage, head).")]
BatchSize = Annotated[int, typer.Option(help="Samples per batch.", min=1)]
Precision = Annotated[str, typer.Option(help="Number format: auto, fp32, bf16, or fp16.")]
SkipCorrupt = Annotated[bool, typer.Option(help="Leave out images that cannot be decoded.", show_default=False)]
Freeze = Annotated[
    list[str] | None, typer.Option(help="Pattern of layers to freeze, or backbone for all but the head. Repeatable.")
]
Seed = Annotated[int, typer.Option(help="Seed for every random choice.")]
LabelSeparator = Annotated[
    str | None,
    typer.Option(help='Character between several labels in a cell of a table; "" for one label each. Default: found.'),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.", show_default=False)]


def validation(text: str | None) -> str | float | bool | None:
    """Return the argument `val` of `fit`: a path, a fraction, False for none, or None for the default."""
    if text is None or exists(text):
        return text
    if text.lower() == "none":
        return False
    try:
        return float(text)
    except ValueError:
        return text


def labeled(data: Any, separator: str | None) -> Any:
    """Return data as the verbs of `FineTuner` take it: a table with its separator of labels, or as it is without one.

    Raises:
        ArgumentError: If there is a separator, but the data is a folder.
    """
    from finetune.data.sources.folders import data_path
    from finetune.data.tables.table import Table

    if separator is None or not isinstance(data, str):
        return data
    if data_path(data).is_dir():
        raise ArgumentError(f"Expected a table with --label-separator, but '{data}' is a folder. Leave the option out.")
    return Table(data, label_separator=separator)


def name_or_none(text: str) -> str | None:
    """Return a name, or None for the word "none"."""
    return None if text.lower() == "none" else text


def learning_rate(text: str | None) -> Rate | None:
    """Return the argument `lr` of `fit`.

    Raises:
        ArgumentError: If the text is neither a number nor two.
    """
    if text is None:
        return None
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if len(rates) not in (1, 2):
        raise ArgumentError(f"Expected --lr to be a number, or two as 1e-4,1e-3, but got {text!r}.")
    return rates[0] if len(rates) == 1 else (rates[0], rates[1])


def outputs_of(data: Any) -> tuple[Sequence[str] | None, int]:
    """Return the classes, and the number of outputs that the labels require: one per class or column of numbers."""
    from finetune.data.sources.base import num_outputs_for
    from finetune.data.sources.folders import find_split
    from finetune.data.sources.open_source import open_source

    split = find_split(data) if isinstance(data, str) else None
    source = open_source(data if split is None else split[0])
    return source.classes, num_outputs_for(source) or 1


def new_tuner(
    model: str, outputs: tuple[Sequence[str] | None, int], freeze: Sequence[str] | None, **settings: Any
) -> FineTuner:
    """Return a tuner with a head for the outputs, and with layers frozen.

    Args:
        model: Model name.
        outputs: As `outputs_of` returns them.
        freeze: Patterns of layers, or `"backbone"`.
        settings: Keyword arguments of `FineTuner`.
    """
    from finetune.tuner import FineTuner

    classes, count = outputs
    tuner = FineTuner(model, **settings)
    if classes is None or {*classes} != {*(tuner.classes or ())}:  # else the head already tells these classes apart
        tuner.replace_head(count)
    for pattern in freeze or []:
        tuner.freeze(None if pattern == "backbone" else pattern)
    return tuner


def table_to_write(path: Path | None) -> Path | None:
    """Return the path of a table, if there is one, after a check that it can be written, so that no work is lost.

    Raises:
        ArgumentError: If the suffix is no format.
        CheckpointError: If the file cannot be written.
    """
    from finetune.checkpoint.file import check_writable

    if path is None:
        return None
    path = local_path(path)
    one_of("format", path.suffix, (".csv", ".jsonl"))
    check_writable(path)
    return path


def figure_to_write(path: Path | None) -> Path | None:
    """Return the path of a figure, if there is one, after a check that it can be written, so that no work is lost.

    Raises:
        ArgumentError: If the suffix is no format, or the file cannot be written.
    """
    from finetune.display.figures import figure_path

    return None if path is None else figure_path(path)


def write_table(table: Any, path: Path) -> Path:
    """Write answers or findings as CSV or JSON Lines, by the suffix of the path, and return it."""
    written: Path = (table.to_csv if path.suffix == ".csv" else table.to_jsonl)(path)
    return written


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, in which null stands for what JSON has no number for."""
    print(json.dumps(_plain(value), ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if value - value == 0 else None  # NaN and infinity
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)
