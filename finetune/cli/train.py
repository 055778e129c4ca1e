"""The command `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.callbacks import Log, callbacks_of
from finetune.cli.options import (
    BatchSize,
    Freeze,
    LabelSeparator,
    LearningRate,
    Precision,
    Seed,
    SkipCorrupt,
    Val,
    Weights,
    labeled,
    learning_rate,
    name_or_none,
    new_tuner,
    outputs_of,
    validation,
)
from finetune.cli.run_file import arguments_of_run, is_run_file, path_beside, write_run_file
from finetune.distributed.launch import in_torchrun, launch, speaks
from finetune.errors import one_of
from finetune.naming.paths import local_path

_AUGMENTATIONS: dict[str, bool | str] = {
    "standard": True,
    "none": False,
    "randaugment": "randaugment",
    "trivialaugment": "trivialaugment",
}


def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(help="Folder with one subfolder per class, a CSV or Parquet table, or a run file to repeat."),
    ],
    out: Annotated[Path | None, typer.Option(help="Checkpoint to write.")] = None,
    val: Val = None,
    label_separator: LabelSeparator = None,
    model: Annotated[str, typer.Option(help="Model name.")] = "resnet18",
    weights: Weights = "DEFAULT",
    in_channels: Annotated[int | None, typer.Option(help="Image channels, if not the model's.", min=1)] = None,
    freeze: Freeze = None,
    strategy: Annotated[str | None, typer.Option(help="Strategy, such as lp_ft or surgical:layer1.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.", min=1)] = 5,
    batch_size: BatchSize = 32,
    accumulate: Annotated[int, typer.Option(help="Batches per update.", min=1)] = 1,
    lr: LearningRate = None,
    schedule: Annotated[str, typer.Option(help="Schedule: cosine, linear, constant, or one_cycle.")] = "cosine",
    optimizer: Annotated[str, typer.Option(help="Optimizer: adamw or sgd.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="Weight decay.", min=0)] = 0.01,
    max_grad_norm: Annotated[float | None, typer.Option(help="Maximum gradient norm per update.")] = None,
    loss: Annotated[str | None, typer.Option(help="Loss: cross_entropy, bce, or mse. Default: by the labels.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Metric, such as f1. Repeatable.")] = None,
    class_weights: Annotated[bool, typer.Option(help="Weight rare classes up.", show_default=False)] = False,
    augment: Annotated[
        str, typer.Option(help="Augmentation: standard, none, randaugment, or trivialaugment.")
    ] = "standard",
    augment_views: Annotated[int | None, typer.Option(help="Fixed augmented versions per image.", min=0)] = None,
    mixup: Annotated[float | None, typer.Option(help="Alpha of mixup, such as 0.2.", min=0)] = None,
    cutmix: Annotated[float | None, typer.Option(help="Alpha of CutMix, such as 1.", min=0)] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of averaged weights, such as 0.999.")] = None,
    swa: Annotated[
        float | None, typer.Option(help="Part of the epochs after which weights are averaged, such as 0.75.")
    ] = None,
    l2sp: Annotated[float | None, typer.Option(help="Strength of the L2-SP pull to the start, such as 0.1.")] = None,
    early_stopping: Annotated[
        int | None, typer.Option(help="Epochs without a better validation loss before the end.", min=1)
    ] = None,
    skip_non_finite: Annotated[
        int | None, typer.Option(help="Updates in a row that may be skipped as not finite. Default: none.", min=1)
    ] = None,
    cache: Annotated[str, typer.Option(help="Frozen activations: auto, memory, disk, none, or a folder.")] = "auto",
    precision: Precision = "auto",
    compile: Annotated[str | None, typer.Option(help="Backend of torch.compile, such as inductor.")] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, or cuda.")] = "auto",
    seed: Seed = 0,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Folder for the last and best checkpoints.")] = None,
    resume: Annotated[bool, typer.Option(help="Resume from --checkpoint-dir.", show_default=False)] = False,
    resume_changed: Annotated[
        bool, typer.Option(help="Resume although options or data have changed.", show_default=False)
    ] = False,
    skip_corrupt: SkipCorrupt = False,
    log: Log = None,
    report: Annotated[Path | None, typer.Option(help="HTML file for a report on the validation data.")] = None,
    card: Annotated[bool, typer.Option(help="Write a model card beside the checkpoint.", show_default=False)] = False,
    progress: Annotated[bool, typer.Option(help="Show the progress.")] = True,
    nproc: Annotated[int | None, typer.Option(help="Processes that train together, one per GPU.", min=1)] = None,
    fsdp: Annotated[
        bool, typer.Option(help="Divide the weights among the processes (FSDP2).", show_default=False)
    ] = False,
) -> None:
    """Fine-tune a pretrained model and write a checkpoint, and beside it a run file that repeats the command.

    Example: finetune train dogs --freeze backbone --epochs 10 --out dogs.safetensors
    """
    given = {name: value for name, value in locals().items() if name != "context"}
    from finetune.card.write_card import card_path
    from finetune.checkpoint.file import check_writable

    # Report usage errors before weights are downloaded, and before hours of training.
    if is_run_file(data):
        context.command.main(arguments_of_run(data, context), standalone_mode=False)
        return
    if nproc and nproc > 1 and not in_torchrun():
        raise typer.Exit(launch(nproc, context.obj))
    if out is None:
        raise typer.BadParameter("Name the checkpoint to write.", context, param_hint="'--out'")
    if resume_changed and not resume:
        raise typer.BadParameter("It needs --resume.", context, param_hint="'--resume-changed'")
    out = local_path(out)
    check_writable(out)
    run_file = path_beside(out)
    check_writable(run_file)
    rate, samples = learning_rate(lr), labeled(data, label_separator)
    outputs = outputs_of(samples)
    augmentation = _AUGMENTATIONS[one_of("augmentation", augment, _AUGMENTATIONS)]
    callbacks = callbacks_of(given | {"out": out})
    if card:
        card_path(out)
    tuner = new_tuner(
        model,
        outputs,
        freeze,
        weights=name_or_none(weights),
        in_channels=in_channels,
        loss=loss,
        metrics=metric,
        optimizer=optimizer,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        gradient_accumulation_steps=accumulate,
        device=device,
        precision=precision,
        compile=compile or False,
        seed=seed,
        distributed="fsdp" if fsdp else "auto",
    )
    tuner.fit(
        samples,
        labeled(validation(val), label_separator),
        epochs=epochs,
        strategy=strategy,
        lr=rate,
        schedule=schedule,
        batch_size=batch_size,
        augment=augmentation,
        augment_views=augment_views,
        cache=name_or_none(cache) or False,
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir,
        resume_from="auto" if resume else None,
        resume_changed=resume_changed,
        skip_corrupt=skip_corrupt,
        progress=progress,
    )
    if speaks():
        write_run_file(run_file, given)
    tuner.save_checkpoint(out, card=card)
    if speaks():
        print(f"wrote {out} and {run_file.name}")
