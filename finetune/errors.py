"""Errors that the package raises on purpose.

Each is a `FineTuneError` and also the matching builtin, so `except ValueError` works without knowing this package.
A message gives the cause, the expectation and the fix. `one_of` looks up every argument that is a name, and `nearest`
suggests the names that a typo may have meant; `whole_number` and `number` check every argument that is a number.
Messages and logs are `printable`, because names of files and classes may hold characters that control a terminal.
"""

from __future__ import annotations

import difflib
import logging
import math
import operator
import pickle
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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

    def __init__(self, *said: object) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in said))


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


class DistributedError(FineTuneError, RuntimeError):
    """Another process of a distributed run failed, or does not answer.

    Example:
        >>> raise DistributedError("Process 1 failed: DataError: ...")
        Traceback (most recent call last):
        finetune.errors.DistributedError: Process 1 failed: DataError: ...
    """


class ExportError(FineTuneError, RuntimeError):
    """The model cannot be exported, or the exported file gives other answers. No file is left behind.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> FineTuner(torch.nn.Linear(4, 2)).export("model", "pretrained")
        Traceback (most recent call last):
        finetune.errors.ExportError: Linear has no save_pretrained...
    """


class NonFiniteError(FineTuneError, ArithmeticError):
    """A loss, a gradient, a weight or a buffer became NaN or infinite.

    For a loss or a gradient, the model keeps its state from before that update. Weights and buffers are checked after
    every epoch and before each save, so the last checkpoint holds those from before.

    Attributes:
        updates_since: Number of later updates that the optimizer skipped before the host noticed.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> tuner = FineTuner(torch.nn.Linear(4, 2), loss=lambda outputs, targets: outputs.mean() * torch.nan)
        >>> tuner.fit((torch.randn(8, 4), torch.arange(8) % 2))
        Traceback (most recent call last):
        finetune.errors.NonFiniteError: The loss became NaN or infinite in epoch 1, update 1 ...
    """

    updates_since = 0


_LONGEST_NAME = 200  # a longer one is not misspelled, and the search takes its length squared


def whole_number(name: str, value: Any, at_least: int | None = 1) -> int:
    """Return an argument as an int. NumPy's integers and integer tensors of one element are accepted, as `y.max() + 1`.

    Raises:
        ArgumentError: If `value` is not a whole number, or below `at_least`.

    Example:
        >>> whole_number("epochs", 0)
        Traceback (most recent call last):
        finetune.errors.ArgumentError: Expected epochs to be a whole number of at least 1, but got 0.
    """
    with suppress(TypeError, RuntimeError):
        whole = operator.index(value)
        if not _is_flag(value) and (at_least is None or whole >= at_least):
            return whole
    bound = "" if at_least is None else f" of at least {at_least}"
    raise ArgumentError(f"Expected {name} to be a whole number{bound}, but got {value!r}.")


def number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return an argument as a float. Any real number is accepted, NumPy's and tensors of one element too.

    Raises:
        ArgumentError: If `value` is not a finite number within the bounds.

    Example:
        >>> number("decay", 1.5, above=0, at_most=1)
        Traceback (most recent call last):
        finetune.errors.ArgumentError: Expected decay to be a number above 0 and at most 1, but got 1.5.
    """
    if is_number(value) and above < float(value) < below and at_least <= float(value) <= at_most:
        return float(value)
    bounds = {"above": above, "at least": at_least, "at most": at_most, "below": below}
    given = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if math.isfinite(bound))
    raise ArgumentError(f"Expected {name} to be a number{given and f' {given}'}, but got {value!r}.")


def is_number(value: Any) -> bool:
    """Return whether a value is one real number.

    Example:
        >>> is_number(0.1), is_number("0.1"), is_number(True)
        (True, False, False)
    """
    with suppress(TypeError, ValueError, RuntimeError):
        return hasattr(type(value), "__float__") and not _is_flag(value) and isinstance(float(value), float)
    return False


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def one_of(
    noun: str, name: Any, known: Iterable[str], others: str = "", *, elsewhere: Mapping[str, str] | None = None
) -> str:
    """Return an argument that is one of the known names.

    Args:
        noun: Kind of name in the message, such as `"loss"`.
        name: The argument.
        known: Names to choose from.
        others: Words for what else the argument may be, such as `"a function of outputs and targets"`.
        elsewhere: What to pass for names of other libraries, in lower case without `_`.

    Raises:
        ArgumentError: If `name` is none of them, with the nearest ones.

    Example:
        >>> one_of("schedule", "cosin", ["linear", "cosine"], "a function of progress")
        Traceback (most recent call last):
        finetune.errors.ArgumentError: There is no schedule 'cosin'. Did you mean 'cosine'? Expected one of linear, ...
    """
    names = list(known)
    if isinstance(name, str) and name in names:
        return name
    listed = [*([f"one of {', '.join(names)}"] if names else []), *([others] if others else [])]
    same = (elsewhere or {}).get(str(name).lower().replace("_", ""))
    meant = f" Did you mean {same}?" if same else nearest(name, names) if isinstance(name, str) else ""
    raise ArgumentError(f"There is no {noun} {name!r}.{meant} Expected {', or '.join(listed)}.")


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """Return `" Did you mean 'a', 'b'?"` with the candidates closest to `name`, or `""` if none is close.

    Example:
        >>> nearest("cosin", ["linear", "cosine"])
        " Did you mean 'cosine'?"
    """
    close = difflib.get_close_matches(name[:_LONGEST_NAME], list(candidates), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(repr(c) for c in close)}?" if close else ""


def some_of(names: Iterable[str], count: int = 3) -> str:
    """Return the first names of many for a message, and how many more there are.

    Example:
        >>> some_of("abcde")
        'a, b, c and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def reason(error: Exception) -> str:
    """Return the cause of an error in one line, without torch's advice on running the code in an untrusted file."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or it holds objects other than tensors, and unpickling those could run code"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def printable(text: str) -> str:
    """Return a text with escapes in the place of control characters, of bytes that are no text, and of bidi controls.

    Line ends and tabs are kept.

    Example:
        >>> printable("dog\\x1b[2J.png, caf\\udce9.png")
        'dog\\\\x1b[2J.png, caf\\\\udce9.png'
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _printable_record(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    if _CONTROLS.search(said):
        record.msg, record.args = printable(said), ()
    return True


for _name in ("finetune", "finetune.series"):
    logging.getLogger(_name).addFilter(_printable_record)
