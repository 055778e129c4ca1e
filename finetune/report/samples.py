"""The sections on single samples: the worst mistakes and the surest right answers, as images or texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from textwrap import shorten
from typing import Any

from finetune.data.sources.base import Source
from finetune.data.targets import REGRESSION
from finetune.errors import DataError, FineTuneError
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
    named = not isinstance(row.answer, str) and len(row.answer) != 1
    bright = [f"for {maps.answers[place]}"] if named else []
    bright += ["nowhere"] if maps.is_empty(place) else []
    overlay = sample_image(maps.overlay(place)), f"Evidence for the answer in {card.title}"
    values = {**card.values, **({"bright": bright} if bright else {})}
    return replace(card, values=values, images=[*card.images, overlay])


def _shown(found: Interpretation, title: str, rows: Rows[JudgedSample]) -> list[Block]:
    if not rows:
        return [Note("None.")]
    cards = [_card(found.predictions.source, row) for row in rows]
    if any(card.images or card.texts for card in cards):
        return [Cards(cards)]
    return [Table.of(title, rows)]


def _lines(answer: Any, row: JudgedSample) -> list[str]:
    """Return a truth or an answer: each class with its probability, or each output with its value."""
    if isinstance(answer, dict):
        return [cell_of({name: value}) for name, value in answer.items()][:_OUTPUTS]
    names = (answer,) if isinstance(answer, str) else answer
    return [f"{name} {row.probabilities[name]:.2f}" for name in names] or [cell_of(answer)]


def _card(source: Source, row: JudgedSample) -> Card:
    true, answer = _lines(row.true, row), _lines(row.answer, row)
    values = {"true": true, "answer": answer} if true != answer else {"answer": answer}
    return card_of(row.sample, {**values, "loss": [cell_of(row.loss)]}, [(source, row.index)])


def card_of(
    title: str, values: Mapping[str, Sequence[str]], samples: Iterable[tuple[Source, int]], side: int = 224
) -> Card:
    """Return a card with the images or texts of samples. One that cannot be read is left out.

    Args:
        title: Name of the samples.
        values: Values by name, each as lines.
        samples: Source and number of each sample.
        side: Length of the longer side of an image in pixels, at most.
    """
    images, texts = [], []
    for source, index in samples:
        try:
            picture, text = picture_of(source, index), text_of(source, index)
        except DataError:
            continue
        images += [] if picture is None else [(sample_image(picture, side), source.name(index))]
        texts += [] if text is None else [shorten(text, _LETTERS, placeholder=" ...")]
    return Card(title, values, images, texts)
