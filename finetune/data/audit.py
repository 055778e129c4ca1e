"""Check data before the first step, with errors that name the sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.batch import target_of
from finetune.data.loading.samples import shape_error
from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.randomness import seeded
from finetune.data.sources.base import Source
from finetune.data.sources.labels import stacked_targets
from finetune.display.waits import announced
from finetune.errors import DataError

_MAX_INSPECTED = 2_000
_MAX_INSPECTED_IF_TARGETS_ARE_KNOWN = 32  # only shapes and values remain to be checked


@dataclass(frozen=True)
class Audit:
    """The requirements that data is checked against, and the checks that sources share.

    Attributes:
        role: Name of the data in messages. "training" data needs two classes.
        num_classes: Number of outputs of the model, or None if targets are not class indices.
        preprocessing: Preprocessing of the source's raw items, which decides whether an item can be used, or None.
        skip_corrupt: Whether to leave out files that cannot be decoded, with a warning, instead of raising an error.
    """

    role: str = "training"
    num_classes: int | None = None
    preprocessing: InputPreprocessing | None = None
    skip_corrupt: bool = False

    def check_item(self, item: Any, name: str) -> None:
        """Raise a DataError that names the sample if the preprocessing cannot use a raw item."""
        if self.preprocessing is None:
            return
        try:
            self.preprocessing.check(item)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error

    def not_finite(self, name: str) -> DataError:
        """Return the error for an input with values that are NaN or infinite."""
        return DataError(f"The input of {name} has values that are NaN or infinite. Correct or remove the sample.")

    def read_samples(self, source: Source) -> None:
        """Read up to 2,000 samples, spread evenly, and check their shapes and values.

        If the targets are unknown beforehand, they are checked as well. If they are known, 32 samples are read.

        Raises:
            DataError: If a sample cannot be used.
        """
        limit = _MAX_INSPECTED if source.targets is None else _MAX_INSPECTED_IF_TARGETS_ARE_KNOWN
        indices = np.linspace(0, len(source) - 1, min(len(source), limit)).round().astype(int).tolist()
        first: Any = None
        targets: list[Any] = []
        for index in announced(indices, f"Checking the {self.role} data", len(indices)):
            with seeded("audit", index):
                item = source[index]
            first = item if first is None else first
            if source.collate_fn is None and (error := shape_error([first, item], [indices[0], index], source.name)):
                raise error
            inputs = item[0] if isinstance(item, (tuple, list)) and item else item
            if self.preprocessing is not None:
                self.check_item(inputs, source.name(index))
            elif isinstance(inputs, Tensor) and inputs.is_floating_point() and not inputs.isfinite().all():
                raise self.not_finite(source.name(index))
            targets.append(target_of(item))
        found = stacked_targets(targets) if source.targets is None else None
        if found is not None:
            self.check_targets(source, found, indices)

    def check_targets(self, source: Source, targets: Tensor, indices: Sequence[int]) -> None:
        """Check the targets [n] of the samples at `indices`.

        Raises:
            DataError: If a target is not finite or out of range, or training data has a single class.
        """
        if targets.is_floating_point():
            finite = targets.isfinite().reshape(len(targets), -1).all(1)
            if not finite.all():
                first = int((~finite).nonzero()[0])
                raise DataError(
                    f"{int((~finite).sum())} of the {len(targets)} targets are not finite; the first is that of "
                    f"{source.name(indices[first])}: {targets[first].tolist()}. Correct or remove these samples."
                )
        if not _are_class_indices(targets):
            return
        if self.num_classes is not None:
            _check_range(targets, self.num_classes, lambda i: source.name(indices[i]))
        if self.role == "training" and len(targets.unique()) == 1:
            label = int(targets[0])
            shown = repr(source.classes[label]) if source.classes and 0 <= label < len(source.classes) else label
            raise DataError(
                f"All {len(targets)} samples of the training data are of one class, {shown}. "
                "Expected at least two classes, because one leaves nothing to distinguish."
            )

    def check_class_count(self, source: Source) -> None:
        """Raise DataError if the number of classes in the data differs from the model's number of outputs."""
        if self.num_classes is None or source.classes is None or len(source.classes) == self.num_classes:
            return
        k = len(source.classes)
        if k == 1 and self.role == "training":
            return  # another number of outputs would not help; `check_targets` says so
        shown = ", ".join(source.classes[:10]) + (", ..." if k > 10 else "")
        raise DataError(
            f"The {self.role} data has {k} classes ({shown}), but the model has {self.num_classes} outputs. "
            f"Call `replace_head({k})` to give it one output per class."
        )


def audit(
    source: Source,
    *,
    num_classes: int | None = None,
    role: str = "training",
    skip_corrupt: bool = False,
    preprocessing: InputPreprocessing | None = None,
) -> Source:
    """Check data before the first step for problems that would stop or spoil a run.

    Every image and audio file is decoded once, every text and every value of an array is read, and up to 2,000
    samples of a dataset are loaded. Streams and DataLoaders cannot be checked beforehand; see `check_batch_targets`.

    Args:
        source: The data.
        num_classes: Number of outputs of the model, or None if targets are not class indices.
        role: Name of the data in messages. "training" data needs two classes.
        skip_corrupt: Whether to leave out files that cannot be decoded, with a warning, instead of raising an error.
        preprocessing: Preprocessing of the raw items, which decides whether an item can be used.

    Returns:
        The source, without the files that were left out.

    Raises:
        DataError: If the data is empty, has a single class, labels out of range, a number of classes that differs
            from the model's outputs, damaged files, empty texts, values that are not finite, or inputs of unequal
            shapes.
    """
    if not source.indexed:
        return source
    if len(source) == 0:
        raise DataError(f"The {role} data is empty. Expected at least one sample.")
    fits = preprocessing is not None and preprocessing.kind == source.kind
    checks = Audit(role, num_classes, preprocessing if fits else None, skip_corrupt)
    checks.check_class_count(source)
    source = source.check(checks)
    if source.targets is not None:
        checks.check_targets(source, source.targets, range(len(source)))
    return source


def check_batch_targets(targets: Any, num_classes: int, name: str) -> None:
    """Check that the class indices [N] of a batch on the CPU are between 0 and `num_classes` - 1.

    On CUDA, a label out of range triggers a device-side assert, which names nothing and ends the process.
    Targets that are not integers [N] or are already on a device are not checked.

    Raises:
        DataError: If a label is out of range.
    """
    if not isinstance(targets, Tensor) or targets.device.type != "cpu" or not _are_class_indices(targets):
        return
    _check_range(targets, num_classes, lambda i: f"sample {i} of {name}")


def _are_class_indices(targets: Tensor) -> bool:
    return targets.dim() == 1 and not targets.is_floating_point() and targets.dtype != torch.bool


def _check_range(targets: Tensor, num_classes: int, name: Callable[[int], str]) -> None:
    outside = ((targets < 0) | (targets >= num_classes)).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        other = "" if targets.min() < 0 else f", or call `replace_head({int(targets.max()) + 1})`"
        raise DataError(
            f"{len(outside)} of {len(targets)} labels are out of range; the first is that of {name(first)}: "
            f"{int(targets[first])}. Expected 0 to {num_classes - 1}, because the model has {num_classes} "
            f"outputs. Correct the labels{other}."
        )
