"""Check data before the first step, with errors that name the sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from finetune.data.batch import target_of
from finetune.data.loading.samples import shape_error
from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.randomness import seeded
from finetune.data.sources.base import Source, evenly_spread
from finetune.data.sources.labels import stacked_targets
from finetune.data.targets import BINARY, CLASSIFICATION, TargetRule, are_class_indices
from finetune.display.progress.waits import announced
from finetune.errors import DataError
from finetune.signals.stops import interruptible

_MAX_INSPECTED = 2_000
_MAX_INSPECTED_IF_TARGETS_ARE_KNOWN = 32  # only shapes and values remain to be checked


@dataclass(frozen=True)
class Audit:
    """The requirements that data is checked against, and the checks that sources share.

    Attributes:
        role: Name of the data in messages. "training" data needs two classes.
        rule: Targets that the task accepts.
        preprocessing: Preprocessing of the source's raw items, which decides whether an item can be used, or None.
        skip_corrupt: Whether to leave out files that cannot be decoded, with a warning, instead of raising an error.
        all_files: Number of files up to which all are decoded.
        max_files: Number of files to decode of more, spread over the data, unless damaged ones are left out.
    """

    role: str = "training"
    rule: TargetRule = field(default_factory=TargetRule)
    preprocessing: InputPreprocessing | None = None
    skip_corrupt: bool = False
    all_files: int = 5_000
    max_files: int = 2_000

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

        If the targets are unknown beforehand, they are kept in `source.sampled_targets`. If they are known, 32
        samples are read. A source is read once.

        Raises:
            DataError: If a sample cannot be used.
        """
        if source.sampled_targets is not None:
            return
        indices = self.sampled_indices(source)
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
            target = target_of(item)
            if target is None and targets and targets[0] is not None:
                raise DataError(
                    f"{source.name(index)} has no label. Every sample needs one: fill it in, or remove the sample."
                )
            targets.append(target)
        if source.targets is None:
            source.sampled_targets = stacked_targets(targets)

    def sampled_indices(self, source: Source) -> list[int]:
        """Return the indices of the samples that `read_samples` reads."""
        limit = _MAX_INSPECTED if source.targets is None else _MAX_INSPECTED_IF_TARGETS_ARE_KNOWN
        return evenly_spread(len(source), limit)

    def check_targets(self, source: Source) -> None:
        """Check all known targets, or those of the samples that were read.

        Raises:
            DataError: If the task does not accept a target, or training data has a single class.
        """
        known = source.targets is not None
        targets = source.targets if known else source.sampled_targets
        indices = range(len(source)) if known else self.sampled_indices(source)
        if targets is None:
            return
        self.rule.check(targets.cpu(), lambda i: source.name(indices[i]))
        counted = targets[self.rule.is_counted(targets)]
        if self.rule.kind == CLASSIFICATION and not len(counted) and len(indices) == len(source):
            raise DataError(
                f"The loss ignores the labels of all {len(targets)} samples of the {self.role} data. Expected at least "
                "one label that it counts."
            )
        if self.role == "training" and self._are_labels(targets) and len(counted.unique()) == 1:
            label = int(counted[0])
            shown = repr(source.classes[label]) if source.classes and 0 <= label < len(source.classes) else label
            raise DataError(
                f"All {len(counted)} samples of the training data are of one class, {shown}. "
                "Expected at least two classes, because one leaves nothing to distinguish."
            )

    def check_class_count(self, source: Source) -> None:
        """Raise DataError if the number of classes in the data differs from the model's number of outputs."""
        rule, classes = self.rule, source.classes
        expected = 2 if rule.kind == BINARY else rule.num_outputs
        if rule.kind is None or expected is None or classes is None or len(classes) == expected:
            return
        k, noun = len(classes), "classes" if rule.kind in (CLASSIFICATION, BINARY) else "label columns"
        if k == 1 and self.role == "training" and noun == "classes":
            return  # another number of outputs would not help; `check_targets` says so
        shown = ", ".join(classes[:10]) + (", ..." if k > 10 else "")
        raise DataError(
            f"The {self.role} data has {k} {noun} ({shown}), but the model has {rule.num_outputs} "
            f"output{'' if rule.num_outputs == 1 else 's'}. Call `replace_head({k})` to give it one output per "
            f"{'class' if noun == 'classes' else 'column'}."
        )

    def _are_labels(self, targets: Tensor) -> bool:
        """Return whether each target is one class of a classification."""
        if self.rule.kind is None:
            return are_class_indices(targets)
        return self.rule.kind in (CLASSIFICATION, BINARY) and targets.numel() == len(targets)


@interruptible()
def audit(
    source: Source,
    *,
    rule: TargetRule | None = None,
    role: str = "training",
    skip_corrupt: bool = False,
    preprocessing: InputPreprocessing | None = None,
) -> Source:
    """Check data before the first step for problems that would stop or spoil a run.

    Image and audio files are decoded once, or 2,000 of more than 5,000; every text and every value of an array is read,
    and up to 2,000 samples of a dataset are loaded. Streams and DataLoaders cannot be checked beforehand; their targets
    are checked batch by batch.

    Args:
        source: The data.
        rule: Targets that the task accepts, or None to check no targets.
        role: Name of the data in messages. "training" data needs two classes.
        skip_corrupt: Whether to leave out files that cannot be decoded, with a warning, instead of raising an error.
        preprocessing: Preprocessing of the raw items, which decides whether an item can be used.

    Returns:
        The source, without the files that were left out.

    Raises:
        DataError: If the data is empty, has a single class, targets that the task does not accept, a number of
            classes that differs from the model's outputs, damaged files, empty texts, values that are not finite, or
            inputs of unequal shapes.
    """
    if not source.indexed:
        return source
    checks = checks_for(source, rule, role, skip_corrupt=skip_corrupt, preprocessing=preprocessing)
    if rule is not None:
        checks.check_class_count(source)
        if source.targets is not None:
            checks.check_targets(source)
    source = source.check(checks)
    if rule is not None:
        checks.check_targets(source)
    return source


@interruptible()
def some_targets(
    source: Source, preprocessing: InputPreprocessing | None = None, role: str = "training", count: int = 64
) -> Tensor | None:
    """Return all targets if they are known, else those of up to 2,000 samples, or of the first `count` of a stream.

    Return None if there are none.

    Raises:
        DataError: If the data is empty, one of these samples cannot be used, or one of the targets is not finite.
    """
    targets = source.targets
    name: Callable[[int], str] = source.name
    if targets is None and source.indexed:
        checks = checks_for(source, None, role, preprocessing=preprocessing)
        checks.read_samples(source)
        indices = checks.sampled_indices(source)
        targets, name = source.sampled_targets, lambda i: source.name(indices[i])
    elif targets is None:
        with seeded("targets"):
            targets, name = source.first_targets(count), "sample {}".format
    TargetRule().check(None if targets is None else targets.cpu(), name)
    return targets


def check_not_empty(source: Source, role: str) -> None:
    """Check that data has a sample. That of a stream is known only once it is read.

    Raises:
        DataError: If there is none.
    """
    if source.indexed and not len(source):
        raise DataError(f"The {role} data is empty. Expected at least one sample.")


def checks_for(
    source: Source,
    rule: TargetRule | None,
    role: str,
    *,
    skip_corrupt: bool = False,
    preprocessing: InputPreprocessing | None = None,
) -> Audit:
    """Return the checks for a source. The preprocessing counts only if it takes the source's items.

    Raises:
        DataError: If the data is empty.
    """
    check_not_empty(source, role)
    fits = preprocessing is not None and preprocessing.kind == source.kind
    return Audit(role, rule or TargetRule(), preprocessing if fits else None, skip_corrupt)
