"""The rows that an `Interpretation` consists of, and `Rows`, a sequence of them that prints as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from torch import Tensor

from finetune.display import html
from finetune.display.numbers import and_more, fixed
from finetune.errors import printable

if TYPE_CHECKING:
    from typing_extensions import Self

Row = TypeVar("Row")

UNDEFINED = "-"

_SHOWN_ROWS = 20
_SHOWN_SCORES = 3


class Rows(Sequence[Row], Generic[Row]):
    """Rows in an order. `print` shows a table of the first ones, in which `-` stands for NaN.

    Args:
        rows: Dataclass instances of one kind.

    Example:
        >>> print(Rows([ConfusedPair("cat", "dog", count=2, share=0.5)]))
        true  predicted  count   share
        cat   dog            2  0.5000
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Row | Self:
        return type(self)(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self._rows == other._rows

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows)"

    def __str__(self) -> str:
        names, lines, text = self.cells()
        if not lines:
            return "none"
        widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
        shown = [
            "  ".join(
                cell.ljust(width) if place < text else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in (names, *lines)
        ]
        return "\n".join([*shown, *self._more()])

    def _repr_html_(self) -> str:
        names, lines, text = self.cells()
        return html.table(names, lines, text=text) + (html.paragraph(*self._more()) if self._more() else "")

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a dict per row, as `pandas.DataFrame` takes them.

        Example:
            >>> Rows([ConfusedPair("cat", "dog", count=2, share=0.5)]).to_dicts()
            [{'true': 'cat', 'predicted': 'dog', 'count': 2, 'share': 0.5}]
        """
        return [{each.name: getattr(row, each.name) for each in fields(row)} for row in self]  # type: ignore[arg-type]

    def cells(self, count: int | None = _SHOWN_ROWS) -> tuple[list[str], list[list[str]], int]:
        """Return the header and the cells of the first rows, and the number of columns of text, which come first.

        Args:
            count: Number of rows at most, or None for all.

        Example:
            >>> Rows([ConfusedPair("cat", "dog", count=2, share=0.5)]).cells()
            (['true', 'predicted', 'count', 'share'], [['cat', 'dog', '2', '0.5000']], 2)
        """
        first: Any = next(iter(self), None)
        shown = [] if first is None else [each for each in fields(first) if each.repr]
        rows = self._rows[:count]
        shown = [each for each in shown if any(getattr(row, each.name) != {} for row in rows)]
        values = [[getattr(row, each.name) for each in shown] for row in rows]
        numeric = [place for place, value in enumerate(values[0] if values else ()) if isinstance(value, (int, float))]
        lines = [[cell_of(value) for value in line] for line in values]
        return [each.name.replace("_", " ") for each in shown], lines, min(numeric, default=len(shown))

    def _more(self) -> list[str]:
        return and_more(len(self), _SHOWN_ROWS)


@dataclass(frozen=True)
class ClassScores:
    """Scores of a class or label.

    Attributes:
        name: Name of the class.
        precision: Fraction of the answers of the class that are right. NaN for a class that is never answered.
        recall: Fraction of the samples of the class that are found. NaN for a class without samples.
        f1: Harmonic mean of the two. NaN for a class that is neither answered nor in the data.
        support: Number of samples of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes, one taken for the other.

    Attributes:
        true: Class of the samples.
        predicted: Class that the model takes them for.
        count: Number of such samples.
        share: Their share in the samples of the true class.
    """

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class JudgedSample:
    """A sample with its answer.

    Attributes:
        sample: Name of the sample, such as the path of its file.
        index: Number of the sample in the data.
        true: True class; of a multi-label task a tuple of labels, of a regression the value of each output.
        answer: Answer of the model, in the same form.
        loss: Loss of the sample.
        probabilities: Probability of the five likeliest classes and of the true one, or of the labels that are true or
            answered, the likeliest first. Empty for a regression.
    """

    sample: str
    index: int = field(repr=False)
    true: Any
    answer: Any
    probabilities: dict[str, float]
    loss: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Samples of similar confidence.

    Attributes:
        low: Lowest confidence in the bin.
        high: Confidence at which the next bin begins.
        confidence: Mean confidence. NaN for an empty bin.
        accuracy: Fraction that is right. NaN for an empty bin.
        count: Number of samples, or of labels of samples for a multi-label task.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Histogram:
    """Numbers of samples by score.

    Attributes:
        edges: Edges of the bins, one more than there are bins.
        counts: Number of samples per bin, for each group of samples.
    """

    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class RocCurve:
    """Receiver operating characteristic of a label.

    Attributes:
        label: Name of the label.
        false_positive_rate: Float64 [P], rising. Empty if the area is NaN.
        true_positive_rate: Float64 [P].
        thresholds: Float64 [P], falling.
        area: Area under the curve. NaN for a label that every sample has, or none.
        positives: Number of samples with the label.
    """

    label: str
    false_positive_rate: Tensor = field(repr=False, compare=False)
    true_positive_rate: Tensor = field(repr=False, compare=False)
    thresholds: Tensor = field(repr=False, compare=False)
    area: float
    positives: int


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """Precision and recall of a label by threshold.

    Attributes:
        label: Name of the label.
        precision: Float64 [P]. Empty if the area is NaN.
        recall: Float64 [P], falling.
        thresholds: Float64 [P - 1], rising.
        area: Average precision. NaN for a label that no sample has.
        positives: Number of samples with the label.
    """

    label: str
    precision: Tensor = field(repr=False, compare=False)
    recall: Tensor = field(repr=False, compare=False)
    thresholds: Tensor = field(repr=False, compare=False)
    area: float
    positives: int


@dataclass(frozen=True)
class OutputErrors:
    """Errors of an output of a regression.

    Attributes:
        output: Name of the output.
        mae: Mean absolute error.
        rmse: Root of the mean squared error.
        r2: Coefficient of determination. NaN if all targets are equal.
    """

    output: str
    mae: float
    rmse: float
    r2: float


def cell_of(value: Any) -> str:
    """Return a value as the text of a cell.

    Example:
        >>> [cell_of(value) for value in (("cat", "dog"), (), float("nan"), {"age": 31.5})]
        ['cat, dog', 'none', '-', 'age 31.5000']
    """
    if isinstance(value, float) and math.isnan(value):
        return UNDEFINED
    if isinstance(value, Mapping):
        if len(value) == 1 and "value" in value:  # the only output of a regression, without a name
            return fixed(value["value"])
        shown = [f"{name} {fixed(number)}" for name, number in list(value.items())[:_SHOWN_SCORES]]
        return printable("  ".join([*shown, *(["..."] if len(value) > len(shown) else [])]))
    if isinstance(value, tuple):
        return printable(", ".join(value)) or "none"
    return printable(value) if isinstance(value, str) else fixed(value)
