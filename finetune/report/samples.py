"""The sections on single samples: the worst mistakes and the surest right answers, as images or texts."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import shorten
from typing import Any

from finetune.data.sources.base import Source
from finetune.data.targets import REGRESSION
from finetune.interpret.interpretation import Interpretation
from finetune.interpret.pictures import picture_of, text_of
from finetune.interpret.rows import JudgedSample, Rows, cell_of
from finetune.report.blocks import Block, Card, Cards, Note, Section, Table
from finetune.report.images import sample_image

_MISTAKES, _SUREST = 24, 12
_LETTERS = 600  # of a text
_OUTPUTS = 6  # of a regression


def sample_sections(found: Interpretation) -> Iterator[Section]:
    """Yield the sections of the worst mistakes and, if answers can be right, of the surest ones."""
    title = "Largest errors" if found.task == REGRESSION else "Worst mistakes"
    yield Section("mistakes", title, _shown(found, title, found.mistakes(_MISTAKES)))
    if found.task != REGRESSION:
        title = "Surest right answers"
        yield Section("surest", title, _shown(found, title, found.surest(_SUREST)))


def _shown(found: Interpretation, title: str, rows: Rows[JudgedSample]) -> list[Block]:
    if not rows:
        return [Note("None.")]
    cards = [_card(found.predictions.source, row) for row in rows]
    if any(card.image or card.text for card in cards):
        return [Cards(cards)]
    return [Table.of(title, rows)]


def _lines(answer: Any, row: JudgedSample) -> list[str]:
    """Return a truth or an answer: each class with its probability, or each output with its value."""
    if isinstance(answer, dict):
        return [cell_of({name: value}) for name, value in answer.items()][:_OUTPUTS]
    names = (answer,) if isinstance(answer, str) else answer
    return [f"{name} {row.probabilities[name]:.2f}" for name in names] or [cell_of(answer)]


def _card(source: Source, row: JudgedSample) -> Card:
    picture, text = picture_of(source, row.index), text_of(source, row.index)
    return Card(
        row.sample,
        {"true": _lines(row.true, row), "answer": _lines(row.answer, row), "loss": [cell_of(row.loss)]},
        None if picture is None else sample_image(picture),
        None if text is None else shorten(text, _LETTERS, placeholder=" ..."),
    )
