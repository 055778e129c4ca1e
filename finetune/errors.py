"""Errors that the package raises on purpose.

Each is a `FineTuneError` and also the matching builtin, so `except ValueError` works without knowing this package.
A message gives the cause, the expectation and the fix. `nearest` suggests the names that a typo may have meant.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Iterable


class FineTuneError(Exception):
    """Base class of all errors that this package raises on purpose.

    Example:
        >>> from finetune import FineTuner
        >>> try:
        ...     tuner = FineTuner("resnet18", precision="half")
        ... except FineTuneError as error:
        ...     print(error)
        There is no precision 'half'. Expected one of auto, fp32, bf16, fp16.
    """


class ArgumentError(FineTuneError, ValueError):
    """An argument has an invalid value.

    Example:
        >>> from finetune import Phase
        >>> Phase(epochs=0)
        Traceback (most recent call last):
        finetune.errors.ArgumentError: Expected epochs to be a whole number of at least 1, but got 0.
    """


class PatternError(FineTuneError, ValueError):
    """A pattern matches no module and no parameter of the model.

    Example:
        >>> from finetune import FineTuner
        >>> FineTuner("resnet18", weights=None).freeze("layer5")
        Traceback (most recent call last):
        finetune.errors.PatternError: ...'layer5'... Did you mean 'layer4', ...
    """


class HeadError(FineTuneError, ValueError):
    """The head of the model cannot be found or replaced.

    Example:
        >>> from torch import nn
        >>> from finetune import FineTuner
        >>> FineTuner(nn.Flatten()).replace_head(3)
        Traceback (most recent call last):
        finetune.errors.HeadError: ...
    """


class DataError(FineTuneError, ValueError):
    """The data cannot be used.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> FineTuner(torch.nn.Linear(4, 2)).fit((torch.randn(8, 4), torch.zeros(7).long()))
        Traceback (most recent call last):
        finetune.errors.DataError: ...
    """


class CheckpointError(FineTuneError, RuntimeError):
    """A weights or checkpoint file is missing, damaged, or belongs to another model.

    Example:
        >>> from finetune import FineTuner
        >>> FineTuner.load_checkpoint("missing.safetensors")
        Traceback (most recent call last):
        finetune.errors.CheckpointError: ...missing.safetensors...
    """


class NonFiniteError(FineTuneError, ArithmeticError):
    """The loss or a gradient became NaN or infinite. The model keeps its state from before that update.

    Attributes:
        updates_since: Number of later updates that the optimizer skipped before the host noticed.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> tuner = FineTuner(torch.nn.Linear(4, 2), loss=lambda outputs, targets: outputs.mean() * torch.nan)
        >>> tuner.fit((torch.randn(8, 4), torch.arange(8) % 2))
        Traceback (most recent call last):
        finetune.errors.NonFiniteError: The loss became NaN or infinite in epoch 1, update 1. ...
    """

    updates_since = 0


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """Return `" Did you mean 'a', 'b'?"` with the candidates closest to `name`, or `""` if none is close.

    Example:
        >>> nearest("cosin", ["linear", "cosine"])
        " Did you mean 'cosine'?"
    """
    close = difflib.get_close_matches(name, list(candidates), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(repr(c) for c in close)}?" if close else ""


def reason(error: Exception) -> str:
    """Return the cause of an error in one line, without torch's advice on running the code in an untrusted file."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or it holds objects other than tensors, and unpickling those could run code"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
