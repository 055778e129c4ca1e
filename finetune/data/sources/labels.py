"""Convert labels (names or numbers) to the targets that a loss takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from finetune.errors import ArgumentError, DataError, nearest
from finetune.naming.unicode import cleaned, normalized

logger = logging.getLogger("finetune")

Classes = tuple[str, ...]
Name = Callable[[int], str]


@dataclass(frozen=True)
class Meaning:
    """The meaning of labels in data: class names, class numbers, or the targets themselves.

    Attributes:
        classes: Classes of the training data, which targets index. None derives them from the labels.
        numbers: True if numbers are the targets themselves, as in a regression, or if the model was trained on class
            numbers without names. False if numbers name classes. None if integers name classes and floats do not.
        names: Whether labels may be names. False if the model was trained on numbers, so that no order of names is
            known.
        several: Whether a sample has any number of classes, so that its targets are a 0 or 1 per class.

    Example:
        >>> targets, classes = Meaning().encode([30, 10, 20], "sample {}".format)
        >>> targets.tolist(), classes
        ([2, 0, 1], ('10', '20', '30'))
        >>> Meaning(numbers=True).encode([30, 10, 20], "sample {}".format)[0].tolist()
        [30, 10, 20]
        >>> Meaning(("cat", "dog"), several=True).encode(["dog"], "sample {}".format)[0].tolist()
        [[0.0, 1.0]]
    """

    classes: Classes | None = None
    numbers: bool | None = None
    names: bool = True
    several: bool = False

    def encode(self, labels: Sequence[Any], name: Name) -> tuple[Tensor, Classes | None]:
        """Encode labels as targets, and return the class names that the targets index.

        Args:
            labels: One label per sample, all names or all numbers; or a list of any number of names per sample.
            name: Function that names sample i in an error message.

        Returns:
            Targets, int64 [N] for classes, float32 [N, K] for lists of them or several per sample, int64 or float32 [N]
            for numbers, and the classes or None.

        Raises:
            DataError: If a label is missing, not one of the classes, or a name where numbers are expected.
        """
        if (several := lists_of_names(labels)) is not None:
            return self.encode_several(several, name)
        if {*map(type, labels)} == {str}:  # each name once, at its first sample, as there may be a million of few
            known = {label: k for k, label in enumerate(dict.fromkeys(labels))}
            targets, classes = self._encode([*known], lambda k: name(labels.index([*known][k])))
            return targets[np.fromiter(map(known.__getitem__, labels), np.int64, len(labels))], classes
        return self._encode(labels, name)

    def _encode(self, labels: Sequence[Any], name: Name) -> tuple[Tensor, Classes | None]:
        """Encode one label per sample."""
        values = [plain_label(label, i, name) for i, label in enumerate(labels)]
        numbers = all(isinstance(value, (int, float)) for value in values)
        floats = numbers and any(isinstance(value, float) for value in values)
        if numbers and (self.numbers or (floats and self.numbers is None and self.classes is None)):
            return torch.tensor(values, dtype=torch.float32 if floats else torch.int64), None
        if floats:
            values = [_whole(value, i, name) for i, value in enumerate(values)]
        if not numbers and not self.names:
            raise self.unnamed({str(value) for value in values})
        found, changed = cleaned([str(value) for value in values])
        if "" in found:
            raise _no_label(name(found.index("")))
        if changed and self.classes is None:
            logger.warning(
                "%d class names are read without surrounding spaces and invisible characters, such as %s as %r.",
                len(changed), ascii(changed[0]), normalized(changed[0]),
            )  # fmt: skip
        classes = in_order(found) if self.classes is None else self.classes
        index = {normalized(known): k for k, known in enumerate(classes)}
        for i, label in enumerate(found):
            if label not in index:
                raise unknown_class(label, name(i), classes)
        targets = torch.tensor([index[label] for label in found], dtype=torch.int64)
        return one_hot(targets, len(classes)).float() if self.several else targets, classes

    def encode_several(self, labels: Sequence[Sequence[Any]], name: Name) -> tuple[Tensor, Classes]:
        """Encode any number of labels per sample as a 0 or 1 per class, float32 [N, K].

        Raises:
            DataError: If a label is missing, stands twice in a sample, or is not one of the classes.

        Example:
            >>> Meaning().encode_several([["cat", "dog"], [], ["dog"]], "sample {}".format)[0].tolist()
            [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
        """
        rows = [[normalized(str(plain_label(label, i, name))) for label in row] for i, row in enumerate(labels)]
        if not self.names:
            raise self.unnamed({label for row in rows for label in row})
        classes = in_order(label for row in rows for label in row) if self.classes is None else self.classes
        index = {normalized(known): k for k, known in enumerate(classes)}
        targets = torch.zeros(len(rows), len(classes))
        for i, row in enumerate(rows):
            for label in row:
                if label not in index:
                    raise unknown_class(label, name(i), classes)
                if targets[i, index[label]]:
                    raise DataError(
                        f"{name(i)} has the label {label!r} twice. Expected each label of a sample once. Labels of a "
                        f"sequence's elements are numbers: pass them as a tensor, with outputs [N, C, T] and "
                        f"loss='cross_entropy'."
                    )
                targets[i, index[label]] = 1
        return targets, tuple(classes)

    def targets_of(self, labels: Any, name: Name) -> tuple[Tensor, Classes | None]:
        """Convert the y of a pair (X, y) to targets: names are encoded, numbers are kept.

        Where classes of the training data are numbers that differ from their positions, such as 1, 2 and 3, whole
        numbers are these class names, not positions.

        Args:
            labels: Tensor, array or list: [N] class indices or names, [N] or [N, K] numbers, or a list of names per
                sample. The columns of a DataFrame [N, K] are outputs, which training data with other columns or
                another order finds by name.
            name: Function that names sample i in an error message.

        Returns:
            Targets, int64 or floating point (float64 arrays become float32), and the classes or None.

        Raises:
            DataError: If the labels do not form an array, or one is missing or not one of the classes.
        """
        if not isinstance(labels, Tensor):
            if (several := lists_of_names(labels)) is not None:
                return self.encode_several(several, name)
            array, columns = _as_array(labels), self._outputs_of(labels)
            if columns is not None:
                known = columns_of_training("y", columns, self.classes)
                rows = array[:, [columns.index(column) for column in known]]
                return self.targets_of(rows, name)[0], tuple(known)
            if array.dtype.kind in "USO":
                return self.encode(array.astype("U").tolist() if array.dtype.kind == "S" else array.tolist(), name)
            labels = torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)
        if not labels.is_floating_point() and not labels.is_complex():
            labels = labels.to(torch.int64)
        one_each = labels.dim() > 0 and labels.numel() == len(labels)
        if self.numbers is not True and one_each and are_other_numbers(self.classes):
            return self.encode(labels.flatten().tolist(), name)
        return labels, self.classes

    def _outputs_of(self, labels: Any) -> Classes | None:
        """Return the names of the columns of a DataFrame [N, K], or None if they only number them, or are no outputs.

        Raises:
            ArgumentError: If two columns have the same name.
            DataError: If they are numbers in another order, and the model was trained without names.
        """
        if getattr(labels, "columns", None) is None or len(labels.columns) < 2:
            return None
        values, names = np.asarray(labels), [str(name) for name in labels.columns]
        are_indices = self.numbers is False and values.dtype.kind in "iu" and values.max(initial=0) > 1
        if values.dtype.kind not in "biuf" or are_indices or names == [str(k) for k in range(len(names))]:
            return None
        columns = given_classes(names)
        if are_other_numbers(columns):
            self.check_numbering(columns)
        return columns

    def say_order(self, classes: Classes | None) -> None:
        """Log the order of class names in data if it was assumed, because the model has no names."""
        if self.classes is None and self.names and classes is not None:
            logger.warning(
                "The model has no class names, so its outputs are taken to be %s, in this order. To change it, set "
                "tuner.classes = (...).", ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else ""),
            )  # fmt: skip

    def check_numbering(self, own: Classes | None) -> None:
        """Check that the class names of a dataset stand for its numbers, if the model was trained on numbers.

        Raises:
            DataError: If they are other names.
        """
        if not self.names and own is not None and any(name != str(k) for k, name in enumerate(own)):
            raise self.unnamed(own)

    def unnamed(self, names: Iterable[str]) -> DataError:
        """Return the error for class names whose order the model does not know."""
        shown = in_order(names)
        listed = ", ".join(shown[:10]) + (", ..." if len(shown) > 10 else "")
        return DataError(
            f"The labels are names ({listed}), but the model was trained on numbers without names, so which output "
            f"stands for which name is not known. Set the names in the order of the outputs with tuner.classes = "
            f"(...), or pass numbers as labels."
        )


def given_classes(names: Any) -> Classes | None:
    """Return class names that the user gives, one per output, in one Unicode form. None stands for none.

    Raises:
        ArgumentError: If they are no sequence of names, or two are the same.

    Example:
        >>> given_classes(["cat", "dog"])
        ('cat', 'dog')
    """
    if names is None:
        return None
    values = [] if isinstance(names, (str, bytes, Set, Mapping)) or not isinstance(names, Iterable) else list(names)
    if not values or not all(isinstance(name, str) and name.strip() for name in values):
        raise ArgumentError(
            f"Expected classes to be a sequence of names, one per output in order, but got {names!r:.200}."
        )
    found: dict[str, int] = {}
    for position, name in enumerate(map(normalized, map(str, values))):
        first = found.setdefault(name, position)
        if first != position:
            raise ArgumentError(
                f"Expected another class name for each output, but outputs {first} and {position} are both called "
                f"{name!r}."
            )
    return tuple(found)


def lists_of_names(labels: Any) -> list[list[Any]] | None:
    """Return labels that are a list of names per sample, or None for others.

    Example:
        >>> lists_of_names([["cat", "dog"], []])
        [['cat', 'dog'], []]
        >>> lists_of_names([[1, 0], [0, 0]]) is None
        True
    """
    if (
        isinstance(labels, (str, bytes, Mapping, Tensor))
        or not hasattr(labels, "__len__")
        or hasattr(labels, "columns")
    ):
        return None
    rows = labels.tolist() if isinstance(labels, np.ndarray) else labels
    found: Any = next((row for row in rows if not (_is_list(row) and len(row) == 0)), None)
    if not _is_list(found) or not isinstance(next(iter(found)), str):
        return None
    several = [sorted(row) if isinstance(row, Set) else row for row in rows]
    return [list(row) for row in several] if all(map(_is_list, several)) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, Set)) or (isinstance(value, np.ndarray) and value.ndim == 1)


def in_order(names: Iterable[str]) -> Classes:
    """Return class names without repetition: by value if all are whole numbers, otherwise by name.

    Example:
        >>> in_order(["10", "9", "10"])
        ('9', '10')
    """
    found = sorted({*names})
    return tuple(sorted(found, key=int) if all(map(_is_whole_number, found)) else found)


def are_other_numbers(classes: Classes | None) -> bool:
    """Return whether a class name is a whole number that differs from its position."""
    numbers = ((k, name) for k, name in enumerate(classes or ()) if name.removeprefix("-").isdecimal())
    return any(name != str(k) for k, name in numbers)  # "01" is not 1, but a 1 means neither it nor its position


def _is_whole_number(name: str) -> bool:
    digits = name.removeprefix("-")
    return digits.isdecimal() and digits.isascii() and str(int(name)) == name


def columns_of_training(data: str, columns: Sequence[str], known: Classes | None) -> list[str]:
    """Return label columns in the order of training, by their names.

    Raises:
        DataError: If a column is missing, or training had no such column.

    Example:
        >>> columns_of_training("y", ["c", "a", "b"], ("a", "b", "c"))
        ['a', 'b', 'c']
    """
    if known is None:
        return list(columns)
    found = {normalized(column): column for column in columns}
    if found.keys() != {*known}:
        raise DataError(
            f"The label columns of {data} are {', '.join(found)}, but those of the training data are "
            f"{', '.join(known)}. Give both the same label columns."
        )
    return [found[name] for name in known]


def _as_array(labels: Any) -> np.ndarray:
    if isinstance(labels, (set, frozenset)):
        raise DataError("y is a set, which has no order. Expected one label per sample, in the order of X.")
    try:
        return np.array(labels)
    except ValueError as error:
        raise DataError(f"The labels do not form an array: {error}. Expected one label per sample.") from error


def _whole(value: Any, i: int, name: Name) -> int:
    if value != int(value):
        raise DataError(
            f"{name(i)} has the label {value}, which is not a whole number. Class labels are whole numbers or names. "
            f"To train on the numbers themselves, pass loss='mse'."
        )
    return int(value)


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


def renumbering(own: Classes | None, classes: Classes | None) -> Tensor | None:
    """Return int64 [len(own)], the index in `classes` of each of a dataset's own classes, or -1 if it is unknown.

    Return None if all indices stay the same.
    """
    if own is None or classes is None or own == classes[: len(own)]:
        return None
    index = {normalized(known): k for k, known in enumerate(classes)}
    return torch.tensor([index.get(normalized(c), -1) for c in own], dtype=torch.int64)


def check_numbering(own: Classes | None, meaning: Meaning, data: str) -> None:
    """Check that class indices that cannot be renumbered agree with the classes of the training data.

    Args:
        own: Classes that the indices refer to, or None if unknown.
        meaning: Meaning of the labels, with the classes of the training data.
        data: Name of the data in the error message.

    Raises:
        DataError: If an index refers to another class, or could be a class name or a position.
    """
    meaning.check_numbering(own)
    classes = meaning.classes
    if own is None and meaning.numbers is not True and are_other_numbers(classes):
        shown = ", ".join((classes or ())[:5])
        raise DataError(
            f"{data} has integer labels, and classes of the training data are called by numbers ({shown}), so a label "
            f"could be the name of a class or its position. Pass a pair (X, y) or a map-style dataset, whose labels "
            f"are read as names."
        )
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


def batch_targets(targets: Any, samples: int, classes: Classes | None, batch: str, *, several: bool = False) -> Any:
    """Return the targets of a batch as a tensor, if they are a list of names or numbers; others are unchanged.

    Args:
        targets: Targets in any form.
        samples: Number of samples in the batch.
        classes: Class names by index, or None.
        batch: Name of the batch in an error message.
        several: Whether a sample has any number of classes, so that names become a 0 or 1 per class.

    Raises:
        DataError: If the targets are names and there are no class names, or a name is unknown.
    """
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "biuf":
        return torch.from_numpy(targets)
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "USO":
        targets = targets.tolist()
    if not isinstance(targets, (list, tuple)) or not targets:
        return targets
    if isinstance(targets[0], bytes):
        raise bytes_as_label(targets[0])
    if all(isinstance(label, str) for label in targets):
        if classes is None:
            raise DataError(
                f"The labels of {batch} are names, such as {targets[0]!r}, and their numbers are not known. Set the "
                f"dataset's `classes` to the names in the order of the outputs, or give class numbers as labels."
            )
        return Meaning(classes, several=several).encode(targets, f"sample {{}} of {batch}".format)[0]
    other = next((label for label in targets if isinstance(label, str) != isinstance(targets[0], str)), None)
    if other is not None:
        raise DataError(
            f"The labels of {batch} are names and numbers, such as {targets[0]!r} and {other!r}. Expected either."
        )
    if _are_alike(targets):
        # torch collates a list per sample into a list per position
        return torch.stack(list(targets), 1 if len(targets[0]) == samples else 0)
    return torch.tensor(targets) if all(isinstance(label, (int, float)) for label in targets) else targets


def _are_alike(targets: Sequence[Any]) -> bool:
    """Return whether targets are tensors [N] of one length and one type."""
    tensors = [label for label in targets if isinstance(label, Tensor) and label.dim() == 1]
    return len(tensors) == len(targets) and len({(len(label), label.dtype) for label in tensors}) == 1


def stacked_targets(targets: Sequence[Any]) -> Tensor | None:
    """Stack one target per sample, or return None if one is missing or they do not form a tensor."""
    tensors = [tensor for target in targets if (tensor := target_tensor(target)) is not None]
    if not tensors or len(tensors) < len(targets):
        return None
    try:
        return torch.stack(tensors)
    except RuntimeError:  # unequal shapes, which only the user's collate_fn and loss understand
        return None


def bytes_as_label(label: bytes) -> DataError:
    """Return the error for a label of bytes, whose encoding is not known."""
    return DataError(f"The labels are bytes, such as {label!r:.80}. Expected names or numbers. Pass label.decode().")


def unknown_class(label: str, where: str, classes: Classes) -> DataError:
    """Return the error for a sample of a class that the training data does not have."""
    shown = ", ".join(classes[:20]) + (f", ... ({len(classes)} in all)" if len(classes) > 20 else "")
    return DataError(
        f"{where} has the class {label!r}, which the training data does not have. "
        f"The known classes are {shown}.{nearest(label, classes)} "
        "Add the class to the training data, or remove the sample."
    )


def _no_label(where: str) -> DataError:
    return DataError(f"{where} has no label. Every sample needs one: fill it in, or remove the sample.")


def plain_label(label: Any, i: int, name: Name) -> str | int | float:
    """Convert a NumPy scalar to Python. Raise DataError if the label is missing, or neither a name nor a number."""
    value = (
        label.item() if isinstance(label, np.generic) or (isinstance(label, Tensor) and label.numel() == 1) else label
    )
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise _no_label(name(i))
    if not isinstance(value, (str, int, float)):
        raise DataError(f"{name(i)} has the label {value!r:.80}. Expected a name or a number.")
    return int(value) if isinstance(value, bool) else value
