"""The sections on single samples: the worst mistakes and the surest right answers, as images or texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from textwrap import shorten
from typing import Any

from finetune.data.sources.base import Source
from finetune.data.targets import REGRESSION
from finetune.errors import FineTuneError
from finetune.interpret.heatmaps import Heatmaps
from finetune.interpret.interpretation import Interpretation
from finetune.interpret.pictures import picture_of, text_of
from finetune.interpret.rows import JudgedSample, Rows, cell_of
from finetune.report.blocks import Block, Card, Cards, Note, Section, Table
from finetune.report.images import sample_image

_MISTAKES, _SUREST = 20, 12
_LETTERS = 600  # of a text
_OUTPUTS = 6  # of a regression


def sample_sections(found: Interpretation, explain: Callable[..., Heatmaps]) -> Iterator[Section]:
    """Yield the sections of the worst mistakes and, if answers can be right, of the surest ones.

    Args:
        found: Answers beside the truth.
        explain: Function like `FineTuner.heatmaps`, for the evidence in the images of mistakes.
    """
    title = "Largest errors" if found.task == REGRESSION else "Worst mistakes"
    rows = found.mistakes(_MISTAKES)
    yield Section("mistakes", title, [*_evidence(found, rows, explain)] or _shown(found, title, rows))
    if found.task != REGRESSION:
        title = "Surest right answers"
        yield Section("surest", title, _shown(found, title, found.surest(_SUREST)))


def _evidence(found: Interpretation, rows: Rows[JudgedSample], explain: Callable[..., Heatmaps]) -> Iterator[Block]:
    """Yield the mistakes with heatmaps, or the reason why there are none. Yield nothing for other data than images."""
    source = found.predictions.source
    if not rows or picture_of(source, rows[0].index) is None:
        return
    try:
        maps = Interpretation(found.predictions, lambda places, of: explain(source.subset(places), of=of)).heatmaps
    except FineTuneError as error:
        yield Note(f"There are no heatmaps. {error}")
        maps = None
    if maps is None:
        yield from _shown(found, "", rows)
        return
    yield Note(
        f"Beside each image is the same as the model sees it, bright where it speaks for the answer, by Grad-CAM at "
        f"the layer {maps.layer}."
    )
    yield Cards([_explained(_card(source, row), row, maps, place) for place, row in enumerate(rows[: len(maps)])])


def _explained(card: Card, row: JudgedSample, maps: Heatmaps, place: int) -> Card:
    """Return a card with a heatmap, and the name of the label or output that it is for if there are several."""
    label = {} if isinstance(row.answer, str) or len(row.answer) == 1 else {"bright": [f"for {maps.answers[place]}"]}
    return replace(card, values={**card.values, **label}, heatmap=sample_image(maps.overlay(place)))


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
