"""Arguments of methods, as people know them from other libraries."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from finetune.errors import ArgumentError, nearest, whole_number

P = ParamSpec("P")
R = TypeVar("R")

_SYNONYMS = {
    "lr": ("learning_rate", "max_lr", "eta", "lr_max"),
    "batch_size": ("bs", "batch", "per_device_train_batch_size", "per_device_eval_batch_size"),
    "epochs": ("n_epochs", "num_epochs", "max_epochs", "num_train_epochs", "n_epoch"),
    "train": ("data", "dataset", "train_data", "train_dataset", "train_loader", "train_dataloader", "dls"),
    "val": ("validation_data", "validation_split", "val_data", "val_dataset", "valid", "eval_dataset", "val_loader"),
    "progress": ("verbose", "progress_bar", "enable_progress_bar", "disable_tqdm"),
    "callbacks": ("cbs", "callback"),
    "schedule": ("scheduler", "lr_scheduler", "lr_scheduler_type"),
    "resume_from": ("ckpt_path", "resume_from_checkpoint", "resume"),
    "checkpoint_dir": ("output_dir", "save_dir", "default_root_dir"),
    "augment": ("augmentation", "augmentations", "aug"),
    "loss": ("criterion", "loss_fn", "loss_func"),
    "metrics": ("metric", "compute_metrics"),
    "optimizer": ("optim", "opt", "opt_func"),
    "weight_decay": ("wd",),
    "max_grad_norm": ("clip_grad_norm", "grad_clip", "gradient_clip_val", "clipnorm"),
    "gradient_accumulation_steps": ("accumulate_grad_batches", "accum_iter", "n_acc"),
    "precision": ("amp", "fp16", "bf16", "mixed_precision", "dtype"),
    "seed": ("random_state", "random_seed"),
    "preprocessing": ("tokenizer", "processor", "image_processor", "feature_extractor", "processing_class"),
}
_OURS = {synonym: name for name, synonyms in _SYNONYMS.items() for synonym in synonyms}

_PAIR = "Pass the pair (X, y) as the data."
_HEAD = "Call replace_head(n) for n outputs."
# What to do instead, where no argument corresponds.
_INSTEAD = {
    **dict.fromkeys(("x", "y", "X", "labels", "targets", "target", "x_val", "y_val", "X_val"), _PAIR),
    **dict.fromkeys(("num_classes", "num_labels", "n_classes", "n_out", "classes"), _HEAD),
    "pretrained": "The published weights are the default, weights='DEFAULT'; weights=None starts from random ones.",
    "transform": "Pass the size, mean and std as preprocessing=Preprocessing(...).",
    "class_weight": "Pass callbacks=ClassWeights() to fit.",
    "patience": "Pass callbacks=EarlyStopping(patience=...) to fit.",
    **dict.fromkeys(
        ("num_workers", "shuffle", "pin_memory", "workers", "drop_last", "collate_fn", "sampler"),
        "The library batches and shuffles the data itself. Pass a DataLoader as the data to do it another way.",
    ),
}

# Counts among the arguments of all functions, with the least that each may be.
_COUNTS = {"batch_size": 1, "epochs": 1, "steps": 10, "samples": 1, "augment_views": 0, "n": 1}


def whole_numbers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with their counts as ints. Only `augment_views` may be None.

    Raises:
        ArgumentError: If one is not a whole number, or too low.

    Example:
        >>> whole_numbers({"batch_size": 2.5})
        Traceback (most recent call last):
        finetune.errors.ArgumentError: Expected batch_size to be a whole number of at least 1, but got 2.5.
    """
    return {
        name: whole_number(name, value, _COUNTS[name])
        if name in _COUNTS and (name, value) != ("augment_views", None)
        else value
        for name, value in arguments.items()
    }


def checks_arguments(method: Callable[P, R]) -> Callable[P, R]:
    """Make a method, or the constructor, explain arguments that it does not have, and check its counts first.

    Its signature stays as it is for `inspect`, editors and type checkers.

    Example:
        >>> from finetune import FineTuner
        >>> FineTuner("resnet18", lr=0.1)
        Traceback (most recent call last):
        finetune.errors.ArgumentError: FineTuner has no argument 'lr'. Pass lr= to fit.
    """
    signature, owner = inspect.signature(method), method.__qualname__.partition(".")[0]
    name = owner if method.__name__ == "__init__" else method.__name__

    @wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise _explained(name, error, signature, kwargs, owner, type(args[0]) if args else None) from error
        defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
        given = {
            name: value for name, value in bound.arguments.items() if value is not None or defaults[name] is not None
        }
        bound.arguments.update(whole_numbers(given))
        return method(*bound.args, **bound.kwargs)

    return checked


def _explained(
    name: str, error: TypeError, signature: inspect.Signature, given: Iterable[str], owner: str, kind: Any
) -> ArgumentError:
    """Return the error for a method of a class `kind`, called `owner`, that was called with other arguments."""
    _, *own = signature.parameters
    unknown = next((argument for argument in given if argument not in own), None)
    if unknown is not None:
        homes = {owner: kind, "fit": getattr(kind, "fit", kind)}
        others = {home: inspect.signature(method).parameters for home, method in homes.items()}
        return ArgumentError(f"{name} has no argument {unknown!r}. {instead_of(unknown, own, others)}")
    pair = " Inputs and labels are one argument, the pair (X, y)." if {"train", "data"} & {*own} else ""
    return ArgumentError(f"{name} was called with other arguments than its own: {error}.{pair}")


def instead_of(name: str, own: Sequence[str], others: Mapping[str, Iterable[str]] = MappingProxyType({})) -> str:
    """Return what to write in place of an argument that a function does not have.

    Args:
        name: Name of the argument.
        own: Names of the function's arguments.
        others: Names of the arguments of other functions, by their names.

    Example:
        >>> instead_of("bs", ["train", "batch_size"])
        'Pass batch_size=.'
    """
    ours = _OURS.get(name, name)
    if ours in own:
        return f"Pass {ours}=."
    home = next((other for other, arguments in others.items() if ours in arguments), None)
    if home is not None:
        return f"Pass {ours}= to {home}."
    return _INSTEAD.get(name) or nearest(name, own).strip() or f"Expected {', '.join(own)}."
