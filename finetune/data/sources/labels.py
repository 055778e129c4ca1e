"""Labels as people write them (names, numbers) to targets as a loss takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.errors import DataError, nearest

Classes = tuple[str, ...]

LABEL_KEYS = (
    "label", "labels", "class", "classes", "class_name", "class_id", "target", "targets",
    "category", "y", "fine_label", "coarse_label",
)  # fmt: skip


def encode(labels: Sequence[Any], classes: Classes | None, name: Callable[[int], str]) -> tuple[Tensor, Classes | None]:
    """Turn one label a sample into targets and the class names they index.

    Names are classes in sorted order, integers are classes in numeric order, floats are regression
    targets and have no classes. Given `classes` (of the training data), these rule instead.

    Args:
        labels: names, ints, or floats; one a sample, all of one kind.
        classes: the training classes, or None to find them here.
        name: what a message calls sample i.

    Returns:
        Targets, int64 [N] (classes) or float32 [N] (regression), and the classes or None.

    Raises:
        DataError: a label that is missing, or that is none of `classes`.
    """
    values = [_plain(label, i, name) for i, label in enumerate(labels)]
    if all(isinstance(value, (int, float)) for value in values):
        if any(isinstance(value, float) for value in values) and classes is None:
            return torch.tensor(values, dtype=torch.float32), None
        found = [str(value) for value in sorted(set(values))]
    else:
        found = sorted({str(value) for value in values})
    names = tuple(found) if classes is None else classes
    index = {known: k for k, known in enumerate(names)}
    targets = torch.empty(len(values), dtype=torch.int64)
    for i, value in enumerate(values):
        if str(value) not in index:
            raise unknown_class(str(value), name(i), names)
        targets[i] = index[str(value)]
    return targets, names


def numbers_in(texts: Sequence[str]) -> Sequence[str | int | float]:
    """Read a column of text as ints or floats if every cell is one; `007` is a name, not a number."""
    try:
        integers = [int(text) for text in texts]
    except ValueError:
        try:
            return [float(text) for text in texts]
        except ValueError:
            return texts
    return integers if all(str(n) == text for n, text in zip(integers, texts, strict=True)) else texts


def class_targets(labels: Any, classes: Classes | None, name: Callable[[int], str]) -> tuple[Tensor, Classes | None]:
    """Turn the y of a pair (X, y) into targets: names are encoded, numbers stand as they are.

    Args:
        labels: a tensor, array or list; [N] class indices or names, [N] or [N, K] numbers.
        classes: the training classes, or None.
        name: what a message calls sample i.

    Returns:
        Targets (int64, or float32 where they were float64) and the classes or None.
    """
    if not isinstance(labels, Tensor):
        try:
            array = np.array(labels)
        except ValueError as error:
            raise DataError(f"The labels do not form an array: {error}. Expected one a sample.") from error
        if array.dtype.kind in "USO":
            return encode(array.astype("U").tolist() if array.dtype.kind == "S" else array.tolist(), classes, name)
        labels = torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)
    if not labels.is_floating_point() and not labels.is_complex():
        labels = labels.to(torch.int64)
    return labels, classes


def renumbering(own: Classes | None, classes: Classes | None) -> Tensor | None:
    """Return int64 [len(own)] that maps own class indices to those of the training classes.

    A class the training data does not know maps to -1. None where nothing has to change.
    """
    if own is None or classes is None or own == classes[: len(own)]:
        return None
    index = {known: k for k, known in enumerate(classes)}
    return torch.tensor([index.get(c, -1) for c in own], dtype=torch.int64)


def unknown_class(label: str, where: str, classes: Classes) -> DataError:
    shown = ", ".join(classes[:20]) + (f", ... ({len(classes)} in all)" if len(classes) > 20 else "")
    return DataError(
        f"{where} has the class {label!r}, which the training data does not have. "
        f"The known classes are {shown}.{nearest(label, classes)} "
        "Add the class to the training data, or remove the sample."
    )


def _plain(label: Any, i: int, name: Callable[[int], str]) -> str | int | float:
    """Unwrap numpy's scalars; refuse a missing label."""
    value = label.item() if isinstance(label, (np.generic, Tensor)) else label
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{name(i)} has no label. Every sample needs one: fill it in, or remove the sample.")
    return int(value) if isinstance(value, bool) else value
