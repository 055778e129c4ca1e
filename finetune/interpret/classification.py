"""`Classification`: answers in words, one per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from finetune.data.targets import BINARY, MULTILABEL, REGRESSION
from finetune.display import html
from finetune.display.numbers import and_more, fixed
from finetune.display.records import as_frame, write_csv, write_jsonl
from finetune.errors import ArgumentError, nearest, number, printable, whole_number
from finetune.interpret.pictures import thumbnail
from finetune.interpret.predictions import Predictions

if TYPE_CHECKING:
    from typing_extensions import Self

UNKNOWN = "don't know"
NONE = "none"

_SHOWN_ROWS = 20
_SEPARATORS = "|;/\n"  # of several classes in a cell: the first that no class name holds


@dataclass(frozen=True)
class Answer:
    """The answer for one sample.

    Attributes:
        sample: Name of the sample, such as the path of its file.
        scores: Probability of each class, the most probable first; the value of each output for a regression.
        rejected: Whether the model is not sure enough to answer.

    Example:
        >>> Answer("dog.png", {"husky": 0.9, "pug": 0.1})
        Answer(sample='dog.png', scores={'husky': 0.9, 'pug': 0.1}, rejected=False)
    """

    sample: str
    scores: dict[str, float]
    rejected: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the most probable first. Of a multi-label task, those above their thresholds."""
        return tuple(self.scores)

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Probability of each of the classes."""
        return tuple(self.scores.values())

    @property
    def best(self) -> str | None:
        """The most probable class; None if the answer is rejected, or no class is above its threshold."""
        return None if self.rejected else next(iter(self.scores), None)


class Classification(Sequence[Answer]):
    """Answers in the order of the data. `print` shows a table, and a notebook also the images.

    Args:
        answers: One answer per sample.
        picture: Function from the number of a sample to a PNG file of it, or None for other data than images.

    Example:
        >>> answers = Classification([Answer("1.png", {"cat": 0.8, "dog": 0.2})])
        >>> answers[0].best
        'cat'
        >>> print(answers)
        1.png  cat 0.8000  dog 0.2000
    """

    def __init__(self, answers: Iterable[Answer], picture: Callable[[int], bytes | None] | None = None) -> None:
        self._answers = tuple(answers)
        self._picture = picture or (lambda index: None)

    def __len__(self) -> int:
        return len(self._answers)

    @overload
    def __getitem__(self, index: int) -> Answer: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Answer | Self:
        if not isinstance(index, slice):
            return self._answers[index]
        places = range(len(self))[index]
        return type(self)(self._answers[index], lambda place: self._picture(places[place]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} answers)"

    def __str__(self) -> str:
        return "\n".join([self[:_SHOWN_ROWS].to_text(), *self._more()])

    def to_text(self) -> str:
        """Return the whole table. `print` shows its first rows.

        Example:
            >>> Classification([Answer("1.png", {"cat": 0.8})]).to_text()
            '1.png  cat 0.8000'
        """
        shown = self._answers
        names = [printable(answer.sample) for answer in shown]
        width = max(map(len, names), default=0)
        lines = [
            f"{name:<{width}}  {printable(self._words(answer))}" for name, answer in zip(names, shown, strict=True)
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        shown = [(printable(answer.sample), printable(self._words(answer))) for answer in self._answers[:_SHOWN_ROWS]]
        pictures = list(map(self._picture, range(len(shown))))
        if any(pictures):
            alone = [picture and html.image(picture, name) for picture, (name, _) in zip(pictures, shown, strict=True)]
            rows = [(image or "", *cells) for image, cells in zip(alone, shown, strict=True)]
            return html.table(["", "sample", "answer"], rows, text=3) + html.paragraph(*self._more())
        return html.table(["sample", "answer"], shown, text=2) + html.paragraph(*self._more())

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a dict per sample, as the rows of `to_csv`.

        For one class per sample: `sample`, `answer`, which is empty if it is rejected, then `class_1`,
        `probability_1`, `class_2` and so on. For several labels per sample: `sample`, then `classes` and
        `probabilities`, each in one cell and separated by `|`. For a regression: `sample`, then the value of each
        output.

        Example:
            >>> Classification([Answer("1.png", {"cat": 0.8})]).to_dicts()
            [{'sample': '1.png', 'answer': 'cat', 'class_1': 'cat', 'probability_1': 0.8}]
        """
        return [{"sample": answer.sample, **self._cells(answer)} for answer in self]

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows of `to_dicts` to a CSV file.

        Args:
            path: File to write.

        Returns:
            The path of the file.

        Raises:
            ArgumentError: If the file cannot be written. An existing file stays intact.

        Example:
            >>> path = Classification([Answer("1.png", {"cat": 0.8})]).to_csv("answers.csv")
            >>> path.read_text().splitlines()
            ['sample,answer,class_1,probability_1', '1.png,cat,cat,0.8']
        """
        return write_csv(path, self.to_dicts())

    def to_jsonl(self, path: str | Path) -> Path:
        """Write a line of JSON per sample: its name, its scores, and whether the answer is rejected.

        Args:
            path: File to write.

        Returns:
            The path of the file.

        Raises:
            ArgumentError: If the file cannot be written. An existing file stays intact.

        Example:
            >>> path = Classification([Answer("1.png", {"cat": 0.8})]).to_jsonl("answers.jsonl")
            >>> path.read_text()
            '{"sample": "1.png", "scores": {"cat": 0.8}, "rejected": false}\\n'
        """
        return write_jsonl(path, map(asdict, self))

    def to_pandas(self) -> Any:
        """Return the rows of `to_dicts` as a DataFrame of pandas.

        Raises:
            ArgumentError: If pandas is not installed.

        Example:
            >>> list(Classification([Answer("1.png", {"cat": 0.8})]).to_pandas())
            ['sample', 'answer', 'class_1', 'probability_1']
        """
        return as_frame(self.to_dicts())

    def _words(self, answer: Answer) -> str:
        found = "  ".join(f"{name} {self._number(score)}" for name, score in answer.scores.items())
        return f"{UNKNOWN} ({found})" if answer.rejected else found or NONE

    def _number(self, score: float) -> str:
        return f"{score:.4f}"

    def _cells(self, answer: Answer) -> dict[str, Any]:
        """Return the cells of an answer by column."""
        cells: dict[str, Any] = {"answer": answer.best or ""}
        for place, (name, probability) in enumerate(answer.scores.items(), 1):
            cells |= {f"class_{place}": name, f"probability_{place}": probability}
        return cells

    def _more(self) -> list[str]:
        return and_more(len(self), _SHOWN_ROWS)


class MultiLabelClassification(Classification):
    """Answers of a task with any number of labels per sample.

    Example:
        >>> MultiLabelClassification([Answer("1.png", {"cat": 0.8, "dog": 0.7})]).to_dicts()
        [{'sample': '1.png', 'classes': 'cat|dog', 'probabilities': '0.8|0.7'}]
    """

    @cached_property
    def _separator(self) -> str:
        letters = {letter for answer in self for name in answer.scores for letter in name}
        return next((each for each in _SEPARATORS if each not in letters), _SEPARATORS[0])

    def _cells(self, answer: Answer) -> dict[str, Any]:
        probabilities = map(str, answer.probabilities)
        return {
            "classes": self._separator.join(answer.classes),
            "probabilities": self._separator.join(probabilities),
        }


class Estimates(Classification):
    """The values of a regression.

    Example:
        >>> Estimates([Answer("1.png", {"age": 31.5})]).to_dicts()
        [{'sample': '1.png', 'age': 31.5}]
    """

    def _number(self, score: float) -> str:
        return fixed(score)

    def _cells(self, answer: Answer) -> dict[str, Any]:
        return answer.scores


def classify(
    predictions: Predictions,
    *,
    top: int = 5,
    threshold: float | Mapping[str, float] | None = None,
    reject: float | None = None,
) -> Classification:
    """Return the answers of a model. See `FineTuner.classify` for the arguments.

    Raises:
        ArgumentError: If an argument is out of range or does not suit the task, or the outputs have no one answer per
            sample.
    """
    top, labels = whole_number("top", top), predictions.labels
    _check_task(predictions, threshold, reject)
    surety = -math.inf if reject is None else number("reject", reject, at_least=0, at_most=1)
    least = _thresholds(predictions, threshold)
    kind = str(predictions.task.kind)
    answers = []
    for index, row in enumerate(predictions.scores.tolist()):
        ranked = _ranked(kind, row, least, top)
        rejected = bool(ranked) and row[ranked[0]] < surety
        answers.append(Answer(predictions.name(index), {labels[label]: row[label] for label in ranked}, rejected))
    return _FORMS.get(kind, Classification)(answers, lambda index: thumbnail(predictions.source, index))


_FORMS: dict[str, type[Classification]] = {MULTILABEL: MultiLabelClassification, REGRESSION: Estimates}


def _ranked(kind: str, row: Sequence[float], least: Sequence[float], top: int) -> list[int]:
    """Return the labels of an answer, the best first."""
    if kind == REGRESSION:
        return list(range(len(row)))
    if kind == BINARY:
        return ([1, 0] if row[1] >= least[1] else [0, 1])[:top]
    above = [label for label in sorted(range(len(row)), key=lambda label: -row[label]) if row[label] >= least[label]]
    return above if kind == MULTILABEL else above[:top]


def _thresholds(predictions: Predictions, given: float | Mapping[str, float] | None) -> list[float]:
    """Return the lowest probability of each label in an answer. For a binary task, that of the second decides."""
    kind, labels = predictions.task.kind, predictions.labels
    own = [0.0] * len(labels)
    if kind == MULTILABEL:
        own = predictions.calibration.thresholds_for(len(labels))
    elif kind == BINARY:
        own = predictions.calibration.thresholds_for(1) * 2
    if given is None:
        return own
    if not isinstance(given, Mapping):
        return [number("threshold", given, at_least=0, at_most=1)] * len(labels)
    for name in given:
        if name not in labels:
            raise ArgumentError(f"There is no class {name!r} to set a threshold for.{nearest(str(name), labels)}")
        if kind == BINARY and name != labels[1]:
            raise ArgumentError(
                f"A binary task has one threshold, that of {labels[1]!r}. Pass it in place of one for {name!r}."
            )
    chosen = {name: number(f"threshold of {name}", value, at_least=0, at_most=1) for name, value in given.items()}
    return [chosen.get(name, before) for name, before in zip(labels, own, strict=True)]


def _check_task(predictions: Predictions, threshold: Any, reject: float | None) -> None:
    kind = predictions.task.kind
    if kind == REGRESSION and (threshold, reject) != (None, None):
        raise ArgumentError("threshold and reject are for probabilities, but this is a regression. Omit them.")
    if kind == MULTILABEL and reject is not None:
        raise ArgumentError(
            "reject is for one class per sample, but this is a multi-label task. Pass threshold=..., above which a "
            "label holds."
        )
