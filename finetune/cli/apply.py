"""Commands on a checkpoint, such as `evaluate`, `predict`, `export` and `serve`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import (
    BatchSize,
    Data,
    File,
    Json,
    LabelSeparator,
    labeled,
    print_json,
    table_to_write,
    write_table,
)
from finetune.errors import CheckpointError


def evaluate(
    file: File, data: Data, label_separator: LabelSeparator = None, batch_size: BatchSize = 32, json: Json = False
) -> None:
    """Print the loss and the metrics of a checkpoint on labeled data.

    Example: finetune evaluate dogs.safetensors dogs/val
    """
    from finetune.tuner import FineTuner

    data = labeled(data, label_separator)
    values = FineTuner.load_checkpoint(file).evaluate(data, batch_size=batch_size)
    if json:
        print_json(values)
        return
    for name, value in values.items():
        print(f"{name} {value:.4f}")


def predict(
    file: File,
    data: Annotated[list[str], typer.Argument(help="Images, folders of images, or a CSV file of paths or texts.")],
    top: Annotated[int, typer.Option(help="Number of classes per sample.", min=1)] = 1,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest probability of a class in an answer.", min=0, max=1)
    ] = None,
    reject: Annotated[
        float | None, typer.Option(help='Lowest probability of the best class; below it, "don\'t know".', min=0, max=1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV or JSON Lines file (.csv, .jsonl) for the answers.")] = None,
    batch_size: BatchSize = 32,
    json: Json = False,
) -> None:
    """Print the most likely classes of each sample.

    Of a multi-label model, print every label above its threshold; of a regression, the values.

    Example: finetune predict dogs.safetensors photos --top 3
    """
    from finetune.tuner import FineTuner

    out = table_to_write(out)
    tuner = FineTuner.load_checkpoint(file)
    answers = tuner.classify(
        data[0] if len(data) == 1 else data, top=top, threshold=threshold, reject=reject, batch_size=batch_size
    )
    if out is not None:
        write_table(answers, out)
    if json:
        print_json([vars(answer) for answer in answers])
    else:
        print(answers.to_text() if out is None else f"wrote {out}")


def interpret(
    file: File,
    data: Data,
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots that suit the task.")] = None,
    heatmaps: Annotated[
        bool, typer.Option(help="Show evidence for the answers in the plot of mistakes.", show_default=False)
    ] = False,
    label_separator: LabelSeparator = None,
    batch_size: BatchSize = 32,
) -> None:
    """Print where a checkpoint goes wrong on labeled data: weakest classes, confusions, and worst mistakes.

    Example: finetune interpret dogs.safetensors dogs/val --plots plots
    """
    from finetune.interpret.plots.save_plots import folder_for_plots, save_plots
    from finetune.tuner import FineTuner

    folder = None if plots is None else folder_for_plots(plots)
    data = labeled(data, label_separator)
    found = FineTuner.load_checkpoint(file).interpret(data, heatmaps=heatmaps, batch_size=batch_size)
    print(found)
    if folder is not None:
        print(f"\nwrote {', '.join(str(path) for path in save_plots(found, folder))}")


def report(
    file: File,
    data: Data,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    train: Annotated[str | None, typer.Option(help="Training data, to look for the same samples in both.")] = None,
    label_separator: LabelSeparator = None,
    batch_size: BatchSize = 32,
) -> None:
    """Write one HTML file on a checkpoint and its answers on labeled data.

    Example: finetune report dogs.safetensors dogs/val --train dogs/train
    """
    from finetune.report.report import report_path
    from finetune.tuner import FineTuner

    report_path(out)  # before the checkpoint is read
    data, train = labeled(data, label_separator), labeled(train, label_separator)
    FineTuner.load_checkpoint(file).report(out, data, train=train, batch_size=batch_size)
    print(f"wrote {out}")


def verify(
    file: Annotated[Path, typer.Argument(help="File written by train, save_checkpoint or fit.")],
    json: Json = False,
) -> None:
    """Check that a checkpoint is whole, and print what it holds.

    Exits with code 1 if it is damaged, of a newer version, or no checkpoint of this package.

    Example: finetune verify dogs.safetensors
    """
    from finetune.checkpoint.verify import verify as verify_checkpoint

    try:
        found = verify_checkpoint(file)
    except CheckpointError as error:
        print(f"finetune: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from error
    if json:
        print_json(found)
        return
    print("\n".join(f"{name:<16}{value}" for name, value in found.items()))


def gather(
    file: Annotated[Path, typer.Argument(help="Checkpoint with a folder of shards beside it.")],
    out: Annotated[Path, typer.Argument(help="Single file to write.")],
) -> None:
    """Write a sharded checkpoint as a single file, in little memory.

    Example: finetune gather checkpoints/last.safetensors dogs.safetensors
    """
    from finetune.checkpoint.file import gather as gather_checkpoint
    from finetune.naming.paths import local_path

    gather_checkpoint(local_path(file), local_path(out))
    print(f"wrote {out}")


def push(
    file: File,
    repo: Annotated[str, typer.Argument(help="Repository, such as me/dogs, which is created if there is none.")],
    private: Annotated[bool | None, typer.Option(help="Whether a new repository is private.")] = None,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload model",
) -> None:
    """Upload a checkpoint and its model card to the Hugging Face hub.

    The token is that of the environment variable HF_TOKEN or of hf auth login.

    Example: finetune push dogs.safetensors me/dogs --private
    """
    from finetune.card.hub import push as push_checkpoint
    from finetune.checkpoint import schema

    checkpoint = replace(schema.read(file), training=None)
    print(push_checkpoint(checkpoint, repo, private=private, message=message))


def export(
    file: File,
    out: Annotated[Path, typer.Argument(help="File to write, or the folder of the format pretrained.")],
    format: Annotated[str, typer.Option(help="Format: onnx, torch, state_dict or pretrained.")] = "onnx",
    verify: Annotated[str | None, typer.Option(help="Data like that to predict, to verify the answers on.")] = None,
    quantize: Annotated[str | None, typer.Option(help="Smaller ONNX file: fp16 or int8.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Largest difference of a probability.", min=0)] = None,
    batch_size: BatchSize = 32,
    json: Json = False,
) -> None:
    """Write a checkpoint as a file that runs without this package, and verify its answers.

    Example: finetune export dogs.safetensors dogs.onnx --verify dogs/val
    """
    from finetune.tuner import FineTuner

    tuner = FineTuner.load_checkpoint(file, device="cpu")
    made = tuner.export(out, format, verify=verify, quantize=quantize, tolerance=tolerance, batch_size=batch_size)
    if json:
        print_json(made.to_dict())
    else:
        print(made)


def serve(
    file: File,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.", min=0, max=65535)] = 8000,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    info: Annotated[Path | None, typer.Option(help="CSV file of class, text and link, shown with answers.")] = None,
    top: Annotated[int, typer.Option(help="Number of classes per answer.", min=1)] = 5,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest probability of a class in an answer.", min=0, max=1)
    ] = None,
    reject: Annotated[
        float | None, typer.Option(help='Lowest probability of the best class; below it, "not sure".', min=0, max=1)
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name that the server is reached by, such as dogs.example.org. Repeatable.")
    ] = None,
    batch_size: BatchSize = 32,
    queue: Annotated[int, typer.Option(help="Requests that may wait.", min=1)] = 256,
) -> None:
    """Serve a checkpoint as a web page and a JSON API.

    Example: finetune serve dogs.safetensors --info breeds.csv --reject 0.5
    """
    from finetune.serve import create_app
    from finetune.serve.server import serve as serve_app
    from finetune.tuner import FineTuner

    made = create_app(
        FineTuner.load_checkpoint(file),
        title=title,
        info=info,
        top=top,
        threshold=threshold,
        reject=reject,
        hosts=allow_host or [],
        batch_size=batch_size,
        queue=queue,
    )
    serve_app(
        made,
        host=host,
        port=port,
        queue=queue,
        ready=lambda url: print(f"serving {file} on {url} (Ctrl-C ends)", flush=True),
    )
