"""Messages in the words of the command line: advice for Python becomes advice for options, or is left out."""

from __future__ import annotations

import re
from functools import partial

# Arguments of Python that are options under the same name, or under another.
_OPTIONS = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            "augment", "augment_views", "batch_size", "cache", "checkpoint_dir", "compile", "device", "epochs",
            "folder", "format", "freeze", "in_channels", "loss", "lr", "max_grad_norm", "optimizer", "precision",
            "quantize", "resume_changed", "schedule", "seed", "skip_corrupt", "strategy", "tolerance", "val",
            "weight_decay", "weights",
        )
    },
    "budget": "--epochs", "gradient_accumulation_steps": "--accumulate", "resume_from": "--resume",
}  # fmt: skip

# Advice that takes another command rather than an option.
_COMMANDS = (
    (r",? or an nn\.Module", ""),
    (r", or a (torchmetrics object|function of (outputs and targets|progress in \[0, 1\]))", ""),
    (r"(or )?call `?replace_head\(\d+\)`?[^.;]*", r"\1train a model for these classes with finetune train"),
    (r"[^.;]*\breplace_head\(\w+\)[^.;]*", "Train a model for these targets with finetune train"),
    (r"(pass|set) (\w+=\S+) to fit\b", r"\1 \2"),
    (r"fit\(checkpoint_dir=\.\.\.\)", "finetune train --checkpoint-dir"),
    (r"pass fit and FineTuner the same", "pass the same"),
    (r", or Report\([^)]*\)", ""),
    (r"pass val=\.\.\.", "pass --val"),
    (r", or a list of Phase\b", ""),
    (r"pass card=False\b", "omit --card"),
    (r"pass token=\.\.\., set the", "set the"),
    (r"pass another one as token=\.\.\.", "set another one as HF_TOKEN"),
    (r"written by save_checkpoint\b", "written by finetune train"),
)

_VALUE = r"(?:'[^']*'|\"[^\"]*\"|\w[\w.\-]*\w|\w)"
_ARGUMENT = re.compile(rf"\b({'|'.join(_OPTIONS)})=({_VALUE})")
_NAME = re.compile(rf"(?<![\w'\"-])({'|'.join(name for name in _OPTIONS if '_' in name)})\b(?![='\"])")

# What only Python can do: a call of an object of the library, of torch or of the user's code, or another argument.
_PYTHON = re.compile(
    r"\b(FineTuner|Preprocessing|Auto\w+|fit|freeze|unfreeze|load_checkpoint|replace_head|save_checkpoint|tuner|model"
    r"|get_peft_model|torch|nn|X|loader|lambda)[.(]\w*|(?<![\w-])[a-z_]+=[\w'\"(\[{]|\bX, y\b|\bDataLoader\b"
)


def in_options(message: str) -> str:
    """Return a message in which arguments of Python are named as options of the command line.

    A sentence or clause that still speaks of Python, for lack of an option, is left out.

    Example:
        >>> in_options("6 of 30 samples were held out. Pass val=False to train on all samples.")
        '6 of 30 samples were held out. Pass --val none to train on all samples.'
        >>> in_options("The images look channels-last. Pass FineTuner one, or X.transpose(0, 3, 1, 2).")
        'The images look channels-last.'
    """
    for pattern, words in _COMMANDS:
        message = re.sub(pattern, partial(_in_place, words=words), message, flags=re.IGNORECASE)
    message = _NAME.sub(lambda found: _OPTIONS[found[1]], _ARGUMENT.sub(_option, message))
    first, *others = re.split(r"(?<=[.;?]) (?=\S)", message)
    kept = [part for part in others if not _PYTHON.search(part)]
    return re.sub(r";$", ".", " ".join([first, *kept]))


def _option(found: re.Match[str]) -> str:
    option, value = _OPTIONS[found[1]], found[2].strip("'\"")
    if option == "--resume" or value == "True":
        return option
    return f"{option} {'none' if value in ('False', 'None') else value}"


def _in_place(found: re.Match[str], words: str) -> str:
    """Return the replacement of a match, with its leading space and its capitalization."""
    was = found[0].lstrip()
    said = found.expand(words).lstrip()
    return found[0][: len(found[0]) - len(was)] + (said[:1].upper() if was[:1].isupper() else said[:1]) + said[1:]
