"""Command line: `finetune train`, `evaluate`, `predict`, `interpret`, `report`, `summary`, `verify`, `advise`,
`check-data`, `compare`, and `demo`.

A usage error prints one line to the standard error stream and exits with code 2. SIGINT exits with code 130,
and SIGTERM with 143.
Commands import the library when they run, so that `--help` and usage errors answer without loading PyTorch.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from finetune.display.options import in_options
from finetune.errors import ArgumentError, CheckpointError, FineTuneError, one_of
from finetune.naming.paths import exists, local_path
from finetune.signals.stops import exit_on_sigterm

if TYPE_CHECKING:
    from finetune.training.optim.rates import Rate

app = typer.Typer(
    help="Transfer learning for PyTorch: fine-tune a pretrained model on your data.",
    rich_markup_mode=None,  # plain help fits 80 columns, where boxes leave 18 for the text
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"finetune {installed_version('torch-finetune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


_Data = Annotated[Path, typer.Argument(help="Folder with one subfolder per class, or a CSV or Parquet table.")]
_File = Annotated[Path, typer.Argument(help="Checkpoint written by train.")]
_Val = Annotated[
    str | None, typer.Option(help="Validation data, a fraction to hold out, or none. Default: hold out a fifth.")
]
_Model = Annotated[list[str], typer.Option(help="Model name. Repeatable.")]
_Weights = Annotated[str, typer.Option(help="Weights: DEFAULT, another name, a file, or none.")]
_Rate = Annotated[str | None, typer.Option(help="Learning rate, or two as 1e-4,1e-3 (first stage, head).")]
_BatchSize = Annotated[int, typer.Option(help="Samples per batch.", min=1)]
_Precision = Annotated[str, typer.Option(help="Number format: auto, fp32, bf16, or fp16.")]
_SkipCorrupt = Annotated[bool, typer.Option(help="Leave out images that cannot be decoded.", show_default=False)]


@app.command()
def train(
    data: _Data,
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    val: _Val = None,
    model: Annotated[str, typer.Option(help="Model name.")] = "resnet18",
    weights: _Weights = "DEFAULT",
    epochs: Annotated[int, typer.Option(help="Passes over the training data.", min=1)] = 5,
    freeze: Annotated[
        list[str] | None, typer.Option(help="Pattern of layers to freeze, or backbone. Repeatable.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="Strategy, such as lp_ft or surgical:layer1.")] = None,
    lr: _Rate = None,
    batch_size: _BatchSize = 32,
    precision: _Precision = "auto",
    seed: Annotated[int, typer.Option(help="Seed for every random choice.")] = 0,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Folder for the last and best checkpoints.")] = None,
    resume: Annotated[bool, typer.Option(help="Resume from --checkpoint-dir.", show_default=False)] = False,
    skip_corrupt: _SkipCorrupt = False,
) -> None:
    """Fine-tune a pretrained model and write a checkpoint."""
    from finetune.checkpoint.file import check_writable
    from finetune.tuner import FineTuner

    # Report usage errors before weights are downloaded, and before hours of training.
    out = local_path(out)
    check_writable(out)
    rate, (classes, num_outputs) = _rate(lr), _outputs(data)
    tuner = FineTuner(model, weights=_weights(weights), precision=precision, seed=seed)
    if classes is None or {*classes} != {*(tuner.classes or ())}:  # else the head already tells these classes apart
        tuner.replace_head(num_outputs)
    for pattern in freeze or []:
        tuner.freeze(None if pattern == "backbone" else pattern)
    tuner.fit(
        data,
        _val(val),
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
    """Print the loss and the metrics of a checkpoint on labeled data."""
    from finetune.tuner import FineTuner

    for name, value in FineTuner.load_checkpoint(file).evaluate(data, batch_size=batch_size).items():
        print(f"{name} {value:.4f}")


@app.command()
def predict(
    file: _File,
    data: Annotated[list[Path], typer.Argument(help="Images, a folder of images, or a CSV file of paths or texts.")],
    top: Annotated[int, typer.Option(help="Number of classes per sample.", min=1)] = 1,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest probability of a class in an answer.", min=0, max=1)
    ] = None,
    reject: Annotated[
        float | None, typer.Option(help='Lowest probability of the best class; below it, "don\'t know".', min=0, max=1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV or JSON Lines file (.csv, .jsonl) for the answers.")] = None,
    batch_size: _BatchSize = 32,
) -> None:
    """Print the most likely classes of each sample.

    Of a multi-label model, print every label above its threshold; of a regression, the values.
    """
    from finetune.checkpoint.file import check_writable
    from finetune.tuner import FineTuner

    if len(data) > 1 and any(os.path.isdir(local_path(path)) for path in data):
        raise ArgumentError("Expected images or one folder of images, but got a folder among several paths.")
    if out is not None:
        out = local_path(out)
        one_of("format", out.suffix, (".csv", ".jsonl"))
        check_writable(out)
    tuner = FineTuner.load_checkpoint(file)
    answers = tuner.classify(
        data[0] if len(data) == 1 else data, top=top, threshold=threshold, reject=reject, batch_size=batch_size
    )
    if out is None:
        print(answers.to_text())
    else:
        (answers.to_csv if out.suffix == ".csv" else answers.to_jsonl)(out)
        print(f"wrote {out}")


@app.command()
def interpret(
    file: _File,
    data: _Data,
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots that suit the task.")] = None,
    heatmaps: Annotated[
        bool, typer.Option(help="Show evidence for the answers in the plot of mistakes.", show_default=False)
    ] = False,
    batch_size: _BatchSize = 32,
) -> None:
    """Print where a checkpoint goes wrong on labeled data: weakest classes, confusions, and worst mistakes."""
    from finetune.interpret.plots.save_plots import folder_for_plots, save_plots
    from finetune.tuner import FineTuner

    folder = None if plots is None else folder_for_plots(plots)
    found = FineTuner.load_checkpoint(file).interpret(data, heatmaps=heatmaps, batch_size=batch_size)
    print(found)
    if folder is not None:
        print(f"\nwrote {', '.join(str(path) for path in save_plots(found, folder))}")


@app.command()
def report(
    file: _File,
    data: _Data,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    train: Annotated[Path | None, typer.Option(help="Training data, to look for the same samples in both.")] = None,
    batch_size: _BatchSize = 32,
) -> None:
    """Write one HTML file on a checkpoint and its answers on labeled data."""
    from finetune.report.report import report_path
    from finetune.tuner import FineTuner

    report_path(out)  # before the checkpoint is read
    FineTuner.load_checkpoint(file).report(out, data, train=train, batch_size=batch_size)
    print(f"wrote {out}")


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="Model name, or a checkpoint.")],
    size: Annotated[int | None, typer.Option(help="Side of a square input image, for output shapes and costs.")] = None,
) -> None:
    """Print the stages of a model, their parameters and costs."""
    from finetune.tuner import FineTuner

    is_file = os.path.isfile(local_path(model))
    tuner = FineTuner.load_checkpoint(model) if is_file else FineTuner(model, weights=None)
    print(tuner.summary(None if size is None else (3, size, size)))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="File written by train, save_checkpoint or fit.")],
) -> None:
    """Check that a checkpoint is whole, and print what it holds.

    Exits with code 1 if it is damaged, of a newer version, or no checkpoint of this package.
    """
    from finetune.checkpoint.verify import verify as verify_checkpoint

    try:
        found = verify_checkpoint(file)
    except CheckpointError as error:
        print(f"finetune: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from error
    print("\n".join(f"{name:<16}{value}" for name, value in found.items()))


@app.command()
def advise(
    data: _Data,
    model: _Model = ["resnet18"],  # noqa: B006
    val: _Val = None,
    weights: _Weights = "DEFAULT",
    samples: Annotated[int, typer.Option(help="Number of samples to measure.", min=1)] = 2000,
    chart: Annotated[Path | None, typer.Option(help="Image file for the chart of the best model.")] = None,
) -> None:
    """Recommend a strategy for the data without training.

    Several models are ranked, the best one first.
    """
    from finetune.checkpoint.file import check_writable
    from finetune.comparison.advise import advise as advise_models

    if chart is not None:
        chart = local_path(chart)
        check_writable(chart)
    advice = advise_models(model, data, _val(val), samples=samples, weights=_weights(weights))
    print("\n\n".join(f"Model: {name}\n{each}" for name, each in advice.items()))
    if chart is not None:
        next(iter(advice.values())).plot(chart)
        print(f"wrote {chart}")


@app.command()
def check_data(
    data: _Data,
    val: Annotated[
        str | None, typer.Option(help="Validation data, or a fraction to hold out. Default: check all data together.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model name, or a checkpoint.")] = "resnet18",
    weights: _Weights = "DEFAULT",
    samples: Annotated[int | None, typer.Option(help="Number of samples to check. Default: all.", min=1)] = None,
    batch_size: _BatchSize = 32,
    out: Annotated[Path | None, typer.Option(help="CSV or JSON Lines file (.csv, .jsonl) for all findings.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Image file for a sheet of the samples that were found.")] = None,
) -> None:
    """Look for duplicates, leaks, wrong labels, outliers, and poor pictures in data.

    Exits with code 1 if it finds errors: unreadable samples, leaks, or the same sample with different labels.
    """
    from finetune.checkpoint.file import check_writable
    from finetune.tuner import FineTuner

    out, sheet = (None if path is None else local_path(path) for path in (out, sheet))
    if out is not None:
        one_of("format", out.suffix, (".csv", ".jsonl"))
    for path in filter(None, (out, sheet)):
        check_writable(path)
    is_file = os.path.isfile(local_path(model))
    tuner = FineTuner.load_checkpoint(model) if is_file else FineTuner(model, weights=_weights(weights))
    found = tuner.check_data(data, _val(val), samples=samples, batch_size=batch_size)
    print(found)
    if out is not None:
        (found.to_csv if out.suffix == ".csv" else found.to_jsonl)(out)
        print(f"wrote {out}")
    if sheet is not None:
        found.plot(sheet)
        print(f"wrote {sheet}")
    raise typer.Exit(1 if found.errors else 0)


@app.command()
def compare(
    data: _Data,
    model: _Model = ["resnet18"],  # noqa: B006
    strategies: Annotated[
        str, typer.Option(help="Comma-separated strategies.")
    ] = "linear_probe,last_stage,full_finetune",
    val: _Val = None,
    weights: _Weights = "DEFAULT",
    seeds: Annotated[int, typer.Option(help="Runs per model and strategy.", min=1)] = 3,
    epochs: Annotated[int, typer.Option(help="Passes over the training data per run.", min=1)] = 10,
    lr: _Rate = None,
    batch_size: _BatchSize = 32,
    precision: _Precision = "auto",
    skip_corrupt: _SkipCorrupt = False,
    folder: Annotated[Path, typer.Option(help="Folder for the table, the plot, and finished runs.")] = Path(
        "finetune-compare"
    ),
) -> None:
    """Compare models and strategies over several seeds.

    Finished runs are kept in --folder, and the same command continues an interrupted comparison. Exits with code 1 if
    a run failed.
    """
    from finetune.comparison.compare import compare as compare_models
    from finetune.files.durable import written

    folder = local_path(folder)
    try:
        comparison = compare_models(
            model,
            data,
            _val(val),
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
    except (KeyboardInterrupt, SystemExit):
        print(f"interrupted: finished runs are in {folder}; repeat the command to continue", file=sys.stderr)
        raise
    with written(folder / "comparison.md") as file:
        file.write(comparison.to_markdown().encode())
    comparison.plot(folder / "comparison.png")
    print(comparison)
    print(f"wrote {folder / 'comparison.md'} and {folder / 'comparison.png'}")
    raise typer.Exit(1 if comparison.failed else 0)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for the images, the plot, and the checkpoint.")] = Path(
        "finetune-demo"
    ),
    seeds: Annotated[int, typer.Option(help="Repetitions with different images and weights.", min=1)] = 5,
) -> None:
    """Transfer a network from the digits 0-4 to the digits 5-9."""
    from finetune.demo import run_demo

    run_demo(folder, seeds)


# typer's usage error. The package that defines it differs between versions of typer.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. This is the entry point of the script `finetune`."""
    logging.basicConfig(format="%(message)s", handlers=[_StandardError()])
    logging.getLogger("finetune").setLevel(logging.INFO)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with exit_on_sigterm():
            code = app(arguments or ["--help"], standalone_mode=False)
    except (FineTuneError, _UsageError) as error:
        message = getattr(error, "format_message", error.__str__)  # typer's names the option, its str does not
        print(f"finetune: {in_options(' '.join(message().split()))}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    if code:  # newer versions of typer return 130 for an interrupt instead of raising
        sys.exit(code)


class _StandardError(logging.StreamHandler[TextIO]):
    """Handler for standard error as it is now, which rich replaces while it draws a bar there.

    Lines name options instead of arguments.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        return in_options(super().format(record))


def _outputs(data: Path) -> tuple[Sequence[str] | None, int]:
    """Return the classes, and the number of outputs that the labels require: one per class or column of numbers."""
    from finetune.data.sources.base import num_outputs_for
    from finetune.data.sources.folders import find_split
    from finetune.data.sources.open_source import open_source

    split = find_split(data)
    source = open_source(data if split is None else split[0])
    return source.classes, num_outputs_for(source) or 1


def _val(text: str | None) -> Path | float | bool | None:
    """Return the argument `val` of `fit`: a path, a fraction, False for none, or None for the default."""
    if text is None or exists(text):
        return None if text is None else Path(text)
    if text.lower() == "none":
        return False
    try:
        return float(text)
    except ValueError:
        return Path(text)


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
