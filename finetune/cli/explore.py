"""Commands before training: `summary`, `check-data`, `advise`, `find-lr`, `compare` and `demo`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.callbacks import Log, loggers_of
from finetune.cli.options import (
    BatchSize,
    Data,
    Freeze,
    Json,
    LabelSeparator,
    LearningRate,
    Model,
    Precision,
    Seed,
    SkipCorrupt,
    Val,
    Weights,
    figure_to_write,
    labeled,
    learning_rate,
    name_or_none,
    new_tuner,
    outputs_of,
    print_json,
    table_to_write,
    validation,
    write_table,
)
from finetune.naming.paths import local_path


def summary(
    model: Annotated[str, typer.Argument(help="Model name, or a checkpoint.")],
    size: Annotated[int | None, typer.Option(help="Side of a square input image, for output shapes and costs.")] = None,
) -> None:
    """Print the stages of a model, their parameters and costs.

    Example: finetune summary resnet18 --size 224
    """
    from finetune.tuner import FineTuner

    is_file = os.path.isfile(local_path(model))
    tuner = FineTuner.load_checkpoint(model) if is_file else FineTuner(model, weights=None)
    print(tuner.summary(None if size is None else (3, size, size)))


def check_data(
    data: Data,
    val: Annotated[
        str | None, typer.Option(help="Validation data, or a fraction to hold out. Default: check all data together.")
    ] = None,
    label_separator: LabelSeparator = None,
    model: Annotated[str, typer.Option(help="Model name, or a checkpoint.")] = "resnet18",
    weights: Weights = "DEFAULT",
    samples: Annotated[int | None, typer.Option(help="Number of samples to check. Default: all.", min=1)] = None,
    batch_size: BatchSize = 32,
    out: Annotated[Path | None, typer.Option(help="CSV or JSON Lines file (.csv, .jsonl) for all findings.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Image file for a sheet of the samples that were found.")] = None,
    json: Json = False,
) -> None:
    """Look for duplicates, leaks, wrong labels, outliers, and poor pictures in data.

    Exits with code 1 if it finds errors: unreadable samples, leaks, or the same sample with different labels.

    Example: finetune check-data dogs/train --val dogs/val --sheet findings.png
    """
    from finetune.tuner import FineTuner

    out, sheet = table_to_write(out), figure_to_write(sheet)
    is_file = os.path.isfile(local_path(model))
    tuner = FineTuner.load_checkpoint(model) if is_file else FineTuner(model, weights=name_or_none(weights))
    data, held = labeled(data, label_separator), labeled(validation(val), label_separator)
    found = tuner.check_data(data, held, samples=samples, batch_size=batch_size)
    if json:
        print_json(found.to_dicts())
    else:
        print(found)
    wrote = []
    if out is not None:
        wrote.append(write_table(found, out))
    if sheet is not None:
        found.plot(sheet)
        wrote.append(sheet)
    if wrote and not json:
        print("\n".join(f"wrote {path}" for path in wrote))
    raise typer.Exit(1 if found.errors else 0)


def advise(
    data: Data,
    model: Model = ["resnet18"],  # noqa: B006
    val: Val = None,
    label_separator: LabelSeparator = None,
    weights: Weights = "DEFAULT",
    samples: Annotated[int, typer.Option(help="Number of samples to measure.", min=1)] = 2000,
    chart: Annotated[Path | None, typer.Option(help="Image file for the chart of the best model.")] = None,
    json: Json = False,
) -> None:
    """Recommend a strategy for the data without training.

    Several models are ranked, the best one first.

    Example: finetune advise dogs --model resnet18 --model efficientnet_b0
    """
    from finetune.comparison.advise import advise as advise_models

    chart = figure_to_write(chart)
    data, held = labeled(data, label_separator), labeled(validation(val), label_separator)
    advice = advise_models(model, data, held, samples=samples, weights=name_or_none(weights))
    if chart is not None:
        next(iter(advice.values())).plot(chart)
    if json:
        print_json({name: asdict(each) for name, each in advice.items()})
        return
    print("\n\n".join(f"Model: {name}\n{each}" for name, each in advice.items()))
    if chart is not None:
        print(f"wrote {chart}")


def find_lr(
    data: Data,
    model: Annotated[str, typer.Option(help="Model name.")] = "resnet18",
    weights: Weights = "DEFAULT",
    freeze: Freeze = None,
    label_separator: LabelSeparator = None,
    lr: LearningRate = None,
    batch_size: BatchSize = 32,
    steps: Annotated[int, typer.Option(help="Number of updates at rising rates.", min=10)] = 100,
    seed: Seed = 0,
    chart: Annotated[Path | None, typer.Option(help="Image file for the losses by rate.")] = None,
    json: Json = False,
) -> None:
    """Suggest the learning rates at which the loss falls fastest.

    Example: finetune find-lr dogs/train --freeze backbone
    """
    from finetune.model.stages import trainable_stages

    chart = figure_to_write(chart)
    data = labeled(data, label_separator)
    rate, outputs = learning_rate(lr), outputs_of(data)
    tuner = new_tuner(model, outputs, freeze, weights=name_or_none(weights), seed=seed)
    if rate is None:  # of the default rates, the ratio of the first stage to the head
        several = len(trainable_stages(tuner.inner, tuner.network.stages())) > 1
        rate = (0.01, 1.0) if several else 1.0
    found = tuner.find_lr(data, lr=rate, batch_size=batch_size, steps=steps)
    if chart is not None:
        found.plot(chart)
    if json:
        print_json({"lr": found.lr})
        return
    rates = found.lr if isinstance(found.lr, tuple) else (found.lr,)
    print("--lr " + ",".join(f"{each:.2g}" for each in rates))
    if chart is not None:
        print(f"wrote {chart}")


def compare(
    data: Data,
    model: Model = ["resnet18"],  # noqa: B006
    strategies: Annotated[
        str, typer.Option(help="Comma-separated strategies.")
    ] = "linear_probe,last_stage,full_finetune",
    val: Val = None,
    label_separator: LabelSeparator = None,
    weights: Weights = "DEFAULT",
    seeds: Annotated[int, typer.Option(help="Runs per model and strategy.", min=1)] = 3,
    epochs: Annotated[int, typer.Option(help="Passes over the training data per run.", min=1)] = 10,
    lr: LearningRate = None,
    batch_size: BatchSize = 32,
    precision: Precision = "auto",
    skip_corrupt: SkipCorrupt = False,
    folder: Annotated[Path, typer.Option(help="Folder for the table, the plot, and finished runs.")] = Path(
        "finetune-compare"
    ),
    log: Log = None,
    json: Json = False,
) -> None:
    """Compare models and strategies over several seeds.

    Finished runs are kept in --folder, and the same command continues an interrupted comparison. Exits with code 1 if
    a run failed.

    Example: finetune compare dogs --strategies linear_probe,lp_ft --seeds 3
    """
    from finetune.comparison.compare import compare as compare_models
    from finetune.files.durable import written

    folder = local_path(folder)
    try:
        comparison = compare_models(
            model,
            labeled(data, label_separator),
            labeled(validation(val), label_separator),
            strategies=[name.strip() for name in strategies.split(",")],
            seeds=seeds,
            budget=epochs,
            folder=folder,
            weights=name_or_none(weights),
            lr=learning_rate(lr),
            batch_size=batch_size,
            precision=precision,
            skip_corrupt=skip_corrupt,
            loggers=loggers_of(log, folder / "compare"),
        )
    except (KeyboardInterrupt, SystemExit):
        print(f"interrupted: finished runs are in {folder}; repeat the command to continue", file=sys.stderr)
        raise
    with written(folder / "comparison.md") as file:
        file.write(comparison.to_markdown().encode())
    comparison.plot(folder / "comparison.png")
    if json:
        print_json([asdict(entry) for entry in comparison.entries])
        raise typer.Exit(1 if comparison.failed else 0)
    print(comparison)
    print(f"wrote {folder / 'comparison.md'} and {folder / 'comparison.png'}")
    raise typer.Exit(1 if comparison.failed else 0)


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for the images, the plot, and the checkpoint.")] = Path(
        "finetune-demo"
    ),
    seeds: Annotated[int, typer.Option(help="Repetitions with different images and weights.", min=1)] = 5,
) -> None:
    """Transfer a network from the digits 0-4 to the digits 5-9.

    Example: finetune demo --seeds 3
    """
    from finetune.demo import run_demo

    run_demo(folder, seeds)
