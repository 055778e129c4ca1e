"""Convert labels (names or numbers) to the targets that a loss takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.errors import DataError, nearest
from finetune.naming.unicode import normalized

Classes = tuple[str, ...]


def encode(labels: Sequence[Any], classes: Classes | None, name: Callable[[int], str]) -> tuple[Tensor, Classes | None]:
    """Encode labels as targets, and return the class names that the targets index.

    Names become classes in sorted order and integers classes in numeric order, unless `classes` sets the order.
    Floats are regression targets and have no classes.

    Args:
        labels: One label per sample: all names, all integers or all floats.
        classes: Classes of the training data, or None to derive them from the labels.
        name: Function that names sample i in an error message.

    Returns:
        Targets, int64 [N] for classes or float32 [N] for regression, and the classes or None.

    Raises:
        DataError: If a label is missing or not one of `classes`.
    """
    values = [_plain(label, i, name) for i, label in enumerate(labels)]
    if all(isinstance(value, (int, float)) for value in values):
        if any(isinstance(value, float) for value in values) and classes is None:
            return torch.tensor(values, dtype=torch.float32), None
        found = [str(value) for value in sorted(set(values))]
    else:
        found = sorted({str(value) for value in values})
    names = tuple(found) if classes is None else classes
    index = {normalized(known): k for k, known in enumerate(names)}
    targets = torch.empty(len(values), dtype=torch.int64)
    for i, value in enumerate(values):
        if str(value) not in index:
            raise unknown_class(str(value), name(i), names)
        targets[i] = index[str(value)]
    return targets, names


def numbers_in(texts: Sequence[str]) -> Sequence[str | int | float]:
    """Convert a column of text to ints or floats if every cell is a number. `007` is a name, not a number."""
    try:
        integers = [int(text) for text in texts]
    except ValueError:
        try:
            return [float(text) for text in texts]
        except ValueError:
            return texts
    return integers if all(str(n) == text for n, text in zip(integers, texts, strict=True)) else texts


def class_targets(labels: Any, classes: Classes | None, name: Callable[[int], str]) -> tuple[Tensor, Classes | None]:
    """Convert the y of a pair (X, y) to targets: names are encoded, numbers are kept.

    Args:
        labels: Tensor, array or list: [N] class indices or names, or [N] or [N, K] numbers.
        classes: Classes of the training data, or None.
        name: Function that names sample i in an error message.

    Returns:
        Targets, int64 or floating point (float64 arrays become float32), and the classes or None.

    Raises:
        DataError: If the labels do not form an array, or one is missing or not one of `classes`.
    """
    if not isinstance(labels, Tensor):
        try:
            array = np.array(labels)
        except ValueError as error:
            raise DataError(f"The labels do not form an array: {error}. Expected one label per sample.") from error
        if array.dtype.kind in "USO":
            return encode(array.astype("U").tolist() if array.dtype.kind == "S" else array.tolist(), classes, name)
        labels = torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)
    if not labels.is_floating_point() and not labels.is_complex():
        labels = labels.to(torch.int64)
    return labels, classes


def renumbering(own: Classes | None, classes: Classes | None) -> Tensor | None:
    """Return int64 [len(own)], the index in `classes` of each of a dataset's own classes, or -1 if it is unknown.

    Return None if all indices stay the same.
    """
    if own is None or classes is None or own == classes[: len(own)]:
        return None
    index = {known: k for k, known in enumerate(classes)}
    return torch.tensor([index.get(c, -1) for c in own], dtype=torch.int64)


def check_numbering(own: Classes | None, classes: Classes | None, data: str) -> None:
    """Check that class indices that cannot be renumbered agree with the classes of the training data.

    Args:
        own: Classes that the indices refer to, or None if unknown.
        classes: Classes of the training data, or None.
        data: Name of the data in the error message.

    Raises:
        DataError: If an index refers to another class.
    """
    if renumbering(own, classes) is None:
        return
    assert own is not None and classes is not None
    k = next(k for k, name in enumerate(own) if k >= len(classes) or classes[k] != name)
    meant = repr(classes[k]) if k < len(classes) else "none at all"
    raise DataError(
        f"{data} numbers the classes differently: its class {k} is {own[k]!r}, the training data's is "
        f"{meant}. Pass the dataset itself, whose classes can be renumbered, or train with the same classes."
    )


def target_tensor(target: Any) -> Tensor | None:
    """Return a target as a tensor on the CPU, or None if it is missing or not numeric."""
    try:
        return None if target is None else torch.as_tensor(target).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        return None


def stacked_targets(targets: Sequence[Any]) -> Tensor | None:
    """Stack one target per sample, or return None if one is missing or they do not form a tensor."""
    tensors = [tensor for target in targets if (tensor := target_tensor(target)) is not None]
    if not tensors or len(tensors) < len(targets):
        return None
    try:
        return torch.stack(tensors)
    except RuntimeError:  # unequal shapes, which only the user's collate_fn and loss understand
        return None


def unknown_class(label: str, where: str, classes: Classes) -> DataError:
    """Return the error for a sample of a class that the training data does not have."""
    shown = ", ".join(classes[:20]) + (f", ... ({len(classes)} in all)" if len(classes) > 20 else "")
    return DataError(
        f"{where} has the class {label!r}, which the training data does not have. "
        f"The known classes are {shown}.{nearest(label, classes)} "
        "Add the class to the training data, or remove the sample."
    )


def _plain(label: Any, i: int, name: Callable[[int], str]) -> str | int | float:
    """Convert a NumPy scalar to Python. Raise DataError if the label is missing."""
    value = label.item() if isinstance(label, (np.generic, Tensor)) else label
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{name(i)} has no label. Every sample needs one: fill it in, or remove the sample.")
    return int(value) if isinstance(value, bool) else normalized(value) if isinstance(value, str) else value
