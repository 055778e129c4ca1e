"""The page of an `Interpretation`, as text and as HTML: a summary, and tables of the weakest spots."""

from __future__ import annotations

from dataclasses import replace
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.display import html
from finetune.errors import printable
from finetune.interpret.pictures import text_of, thumbnail
from finetune.interpret.rows import ClassScores, JudgedSample, Rows, cell_of

if TYPE_CHECKING:
    from finetune.interpret.interpretation import Interpretation

KINDS = {
    CLASSIFICATION: "classification",
    BINARY: "binary classification",
    MULTILABEL: "multi-label classification",
    REGRESSION: "regression",
}

_SHOWN = 5  # rows of each table
_SHOWN_LETTERS = 40  # of a text


def to_text(found: Interpretation) -> str:
    """Return the page as text."""
    parts = [f"{title}\n{_indented(str(rows))}" for title, rows in tables(found).items()]
    return "\n\n".join(["\n".join(summary(found)), *parts])


def to_html(found: Interpretation) -> str:
    """Return the page as HTML, with the images of the worst mistakes."""
    parts = [html.paragraph(*map(printable, summary(found)))]
    for title, rows in tables(found).items():
        names, lines, text = rows.cells()
        pictures = [_picture(found, place, row) for place, row in enumerate(rows) if isinstance(row, JudgedSample)]
        if any(pictures):
            names, text = ["", *names], text + 1
            lines = [[picture or "", *line] for picture, line in zip(pictures, lines, strict=True)]
        parts.append(html.table(names, lines, text=text, caption=title) if lines else html.paragraph(f"{title}: none"))
    return "".join(parts)


def summary(found: Interpretation) -> list[str]:
    """Return the task, the number of samples, and the measures of the whole."""
    into = f" into {len(found.labels):,} classes" if found.task == CLASSIFICATION else ""
    if found.task == REGRESSION:
        values = {"mae": found.mae, "rmse": found.rmse, "r2": found.r2}
    else:
        values = {"accuracy": found.accuracy}
        if len(found.labels) > 5 and found.task == CLASSIFICATION:
            values["top-5 accuracy"] = found.top5
        values["calibration error"] = found.calibration_error
    measured = ", ".join(f"{name} {cell_of(value)}" for name, value in values.items())
    return [f"{KINDS[found.task].capitalize()}{into}, {samples(len(found))}", measured]


def tables(found: Interpretation) -> dict[str, Rows[Any]]:
    """Return the tables by title: the weakest classes, the most confused pairs, and the worst mistakes."""
    if found.task == REGRESSION:
        outputs = {"Outputs": found.per_output} if len(found.labels) > 1 else {}
        return {**outputs, "Largest errors": _samples(found)}
    present = [row for row in found.per_class if row.support]
    noun = "labels" if found.task == MULTILABEL else "classes"
    title = f"Weakest {noun}" if len(present) > _SHOWN else noun.capitalize()
    absent = len(found.labels) - len(present)
    title += f" ({absent:,} without samples)" if absent else ""
    pairs = {} if found.task == MULTILABEL else {"Most confused": found.most_confused(_SHOWN)}
    return {title: weakest_classes(found, _SHOWN), **pairs, "Worst mistakes": _samples(found)}


def weakest_classes(found: Interpretation, n: int) -> Rows[ClassScores]:
    """Return the `n` classes or labels of the lowest F1, of those with samples."""
    present = [row for row in found.per_class if row.support]
    return Rows(sorted(present, key=lambda row: (row.f1, -row.support))[:n])


def confidence(found: Interpretation) -> str:
    """Return the name of the probabilities that `reliability` counts as confidence."""
    if found.task == BINARY:
        return f"probability of {found.labels[1]}"
    return "probability of each label" if found.task == MULTILABEL else "probability of the answer"


def samples(count: int) -> str:
    """Return a number of samples in words."""
    return f"{count:,} sample{'s' * (count != 1)}"


def _samples(found: Interpretation) -> Rows[JudgedSample]:
    """Return the worst mistakes, texts with their beginning."""
    rows = []
    for row in found.mistakes(_SHOWN):
        text = text_of(found.predictions.source, row.index)
        said = "" if text is None else f": {shorten(text, _SHOWN_LETTERS, placeholder='...')}"
        rows.append(replace(row, sample=row.sample + said))
    return Rows(rows)


def _picture(found: Interpretation, place: int, row: JudgedSample) -> html.Markup | None:
    """Return the image of a mistake, with the evidence for the answer if that is known."""
    maps, name = found.heatmaps, printable(row.sample)
    if maps is None or place >= len(maps):
        content = thumbnail(found.predictions.source, row.index)
        return None if content is None else html.image(content, name)
    nowhere = "<br/>evidence: nowhere" if maps.is_empty(place) else ""
    return html.Markup(html.image(maps.png(place), name) + nowhere)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
