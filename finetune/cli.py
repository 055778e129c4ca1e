"""The command line: `finetune train`, `evaluate`, `predict`, `summary`, `advise`, `compare`,
`demo`.

A mistake of the user's is one line on the standard error stream and exit code 2; a run that is
interrupted ends with 130.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from finetune.checkpoint.file import check_writable
from finetune.comparison.advise import advise as advise_on
from finetune.comparison.compare import compare as compare_all
from finetune.data.sources.folders import find_split
from finetune.data.sources.open_source import open_source
from finetune.demo import run_demo
from finetune.errors import ArgumentError, FineTuneError
from finetune.training.optim.rates import Rate
from finetune.tuner import FineTuner

app = typer.Typer(
    help="Transfer learning for PyTorch: fine-tune a pretrained model on your own data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Data = Annotated[Path, typer.Argument(help="A folder with a folder per class, or a CSV or Parquet file.")]
_File = Annotated[Path, typer.Argument(help="A checkpoint that train wrote.")]
_Val = Annotated[Path | None, typer.Option(help="Validation data; without it a fifth is set aside.")]
_Weights = Annotated[str, typer.Option(help="DEFAULT, another name, a file, or none.")]
_Rate = Annotated[str | None, typer.Option(help="A rate, or two as 1e-4,1e-3: first stage and head.")]
_BatchSize = Annotated[int, typer.Option(help="Samples a batch.", min=1)]
_Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
_SkipCorrupt = Annotated[bool, typer.Option(help="Leave out pictures that cannot be decoded.")]


@app.command()
def train(
    data: _Data,
    out: Annotated[Path, typer.Option(help="Where to write the checkpoint.")],
    val: _Val = None,
    model: Annotated[str, typer.Option(help="A torchvision classifier.")] = "resnet18",
    weights: _Weights = "DEFAULT",
    epochs: Annotated[int, typer.Option(help="Passes over the training data.", min=1)] = 5,
    freeze: Annotated[
        list[str] | None, typer.Option(help="A pattern of what to freeze, or 'backbone'; may be repeated.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="Such as gradual_unfreezing, lora, or surgical:layer1.")] = None,
    lr: _Rate = None,
    batch_size: _BatchSize = 32,
    precision: _Precision = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Keep the last and the best checkpoint here.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in --checkpoint-dir.")] = False,
    skip_corrupt: _SkipCorrupt = False,
) -> None:
    """Fine-tune a pretrained model on pictures and write a checkpoint."""
    # What is wrong with the command is said before weights are fetched, and before hours of training.
    check_writable(out)
    rate, outputs = _rate(lr), _number_of_classes(data)
    tuner = FineTuner(model, weights=_weights(weights), precision=precision, seed=seed).replace_head(outputs)
    for pattern in freeze or []:
        tuner.freeze(None if pattern == "backbone" else pattern)
    tuner.fit(
        data,
        val,
        epochs=epochs,
        strategy=strategy,
        lr=rate,
        batch_size=batch_size,
        checkpoint_dir=checkpoint_dir,
        resume_from="auto" if resume else None,
        skip_corrupt=skip_corrupt,
    )
    tuner.save_checkpoint(out)
    print(f"wrote {out}")


@app.command()
def evaluate(file: _File, data: _Data, batch_size: _BatchSize = 32) -> None:
    """Print the loss and the metrics of a checkpoint on data."""
    for name, value in FineTuner.load_checkpoint(file).evaluate(data, batch_size=batch_size).items():
        print(f"{name} {value:.4f}")


@app.command()
def predict(
    file: _File,
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or a folder of them.")],
    top: Annotated[int, typer.Option(help="How many classes a picture.", min=1)] = 1,
) -> None:
    """Print the likeliest classes of pictures, each with its probability."""
    if len(pictures) > 1 and any(picture.is_dir() for picture in pictures):
        raise ArgumentError("Expected pictures, or one folder of them, but got a folder among several paths.")
    tuner = FineTuner.load_checkpoint(file)
    source = open_source(pictures[0] if len(pictures) == 1 else pictures, labelled=False)
    outputs = tuner.predict(source)
    values = outputs if tuner.task is None else tuner.task.probabilities(outputs)
    for index, row in enumerate(values):
        print(f"{source.name(index)}  {_likeliest(row, tuner.classes, top)}")


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="A torchvision classifier, or a checkpoint.")],
    size: Annotated[int | None, typer.Option(help="The side of a square picture, to show output shapes.")] = None,
) -> None:
    """Print the stages of a model: what is frozen, what trains, and how large it is."""
    known = Path(model).is_file()
    tuner = FineTuner.load_checkpoint(model) if known else FineTuner(model, weights=None)
    print(tuner.summary(None if size is None else (3, size, size)))


@app.command()
def advise(
    data: _Data,
    model: Annotated[list[str], typer.Option(help="A model by name; may be repeated.")] = ["resnet18"],  # noqa: B006
    val: _Val = None,
    weights: _Weights = "DEFAULT",
    samples: Annotated[int, typer.Option(help="How many samples to look at.", min=1)] = 2000,
    chart: Annotated[Path | None, typer.Option(help="Where to draw the first model's chart.")] = None,
) -> None:
    """Measure which strategy suits the data, and of several models which knows most of it; nothing is trained."""
    if chart is not None:
        check_writable(chart)
    found = advise_on(model, data, val, samples=samples, weights=_weights(weights))
    print("\n\n".join(f"{name}: {advice}" for name, advice in found.items()))
    if chart is not None:
        next(iter(found.values())).plot(chart)
        print(f"wrote {chart}")


@app.command()
def compare(
    data: _Data,
    model: Annotated[list[str], typer.Option(help="A model by name; may be repeated.")] = ["resnet18"],  # noqa: B006
    strategies: Annotated[
        str, typer.Option(help="With commas between them.")
    ] = "linear_probe,last_stage,full_finetune",
    val: _Val = None,
    weights: _Weights = "DEFAULT",
    seeds: Annotated[int, typer.Option(help="Runs of each model with each strategy.", min=1)] = 3,
    epochs: Annotated[int, typer.Option(help="Passes over the training data in each run.", min=1)] = 10,
    lr: _Rate = None,
    batch_size: _BatchSize = 32,
    precision: _Precision = "auto",
    skip_corrupt: _SkipCorrupt = False,
    folder: Annotated[
        Path, typer.Option(help="Where finished runs are kept, to go on from, and table and plot.")
    ] = Path("finetune-compare"),
) -> None:
    """Train models with strategies on the same data for as long, and print a table of what came of it.

    The exit code is 1 where a run failed.
    """
    try:
        found = compare_all(
            model,
            data,
            val,
            strategies=[name.strip() for name in strategies.split(",")],
            seeds=seeds,
            budget=epochs,
            folder=folder,
            weights=_weights(weights),
            lr=_rate(lr),
            batch_size=batch_size,
            precision=precision,
            skip_corrupt=skip_corrupt,
        )
    except KeyboardInterrupt:
        print(f"interrupted; finished runs are in {folder}, and the same command goes on from them", file=sys.stderr)
        raise
    (folder / "comparison.md").write_text(found.to_markdown(), encoding="utf-8")
    found.plot(folder / "comparison.png")
    print(found)
    print(f"wrote {folder / 'comparison.md'} and {folder / 'comparison.png'}")
    raise typer.Exit(1 if found.failed else 0)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where pictures, plot and checkpoint go.")] = Path("finetune-demo"),
    seeds: Annotated[int, typer.Option(help="Repetitions with other pictures and weights.", min=1)] = 5,
) -> None:
    """Move a small network from the digits 0 to 4 to 5 to 9, in four ways, and compare them."""
    run_demo(folder, seeds)


# typer's error for a wrong option or argument; which package defines it differs between its versions.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the entry point of the script `finetune`."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    if not sys.stderr.isatty():  # on a terminal the progress display says the same
        logging.getLogger("finetune").setLevel(logging.INFO)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = app(arguments or ["--help"], standalone_mode=False)
    except (FineTuneError, _UsageError) as error:
        say = getattr(error, "format_message", error.__str__)  # typer's names the option, its str does not
        print(f"finetune: {' '.join(say().split())}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    if code:  # newer versions of typer return 130 for an interrupt instead of raising
        sys.exit(code)


def _likeliest(row: Tensor, classes: Sequence[str] | None, top: int) -> str:
    """Name the `top` likeliest classes of a row [C] with their values; a single output is just its value."""
    if len(row) == 1:
        return f"{row.item():.3f}"
    best = row.topk(min(top, len(row)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return "  ".join(f"{classes[index] if classes else index} {value:.3f}" for index, value in pairs)


def _number_of_classes(data: Path) -> int:
    split = find_split(data)
    classes = open_source(data if split is None else split[0]).classes
    return 1 if classes is None else len(classes)


def _weights(name: str) -> str | None:
    return None if name.lower() == "none" else name


def _rate(text: str | None) -> Rate | None:
    if text is None:
        return None
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if len(rates) not in (1, 2):
        raise ArgumentError(f"Expected --lr to be a number, or two as 1e-4,1e-3, but got {text!r}.")
    return rates[0] if len(rates) == 1 else (rates[0], rates[1])
