"""The section on the data: findings of `check_data` by severity, as a table and as images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from finetune.data_check.data_check import DataCheck
from finetune.data_check.findings import KINDS, Finding
from finetune.data_check.page import Grouped, by_kind
from finetune.errors import FineTuneError, some_of
from finetune.report.blocks import Block, Card, Cards, Facts, Note, Section, Table
from finetune.report.samples import card_of

_MOST_CHECKED = 10_000  # samples of each part, as each runs through the model once more
_MOST_SHOWN = 200
_MOST_NAMES = 3  # of a finding
_MOST_CARDS = 6  # of each kind
_SIDE_BY_SIDE = 2  # samples of a finding as images
_SIDE = 160  # pixels of an image, at most, so that all of them take less than 2 MB


def data_section(check: Callable[..., DataCheck], data: Any, train: Any) -> Section:
    """Return the section of the findings, or of the reason why the data was not checked.

    Args:
        check: Function like `FineTuner.check_data`.
        data: Data of the report.
        train: Training data, or None.
    """
    parts = (data,) if train is None else (train, data)
    try:
        found = check(*parts, samples=_MOST_CHECKED)
    except FineTuneError as error:
        return Section("data", "Data", [Note(f"The data was not checked. {error}")])
    blocks: list[Block] = [Note(f"Checked: {', '.join(found.checked)}.")]
    blocks += [Note(f"Left out: {reason}.") for reason in found.left_out]
    return Section("data", "Data", [*blocks, *(_findings(found) if found.findings else [Note("Nothing was found.")])])


def _findings(found: DataCheck) -> Iterator[Block]:
    kinds = by_kind(found.findings)
    yield Facts({_heading(kind, each): KINDS[kind].advice for kind, each in kinds})
    rows = [
        [each.severity, each.kind, some_of(each.samples, _MOST_NAMES), each.why]
        for each in found.findings[:_MOST_SHOWN]
    ]
    shown = f"The first {len(rows)} of {len(found):,} findings" if len(rows) < len(found) else "Findings"
    yield Table(shown, ["severity", "kind", "samples", "finding"], rows, 4)
    yield from _sheets(found, kinds)


def _sheets(found: DataCheck, kinds: Grouped) -> Iterator[Cards]:
    """Yield the first findings of each kind as images or texts, if they are any."""
    for kind, each in kinds:
        cards = [_card(found, one) for one in each[:_MOST_CARDS]]
        seen = [card for card in cards if card.images or card.texts]
        if seen:
            first = f", the first {len(seen)}" if len(seen) < len(each) else ""
            yield Cards(seen, f"{_heading(kind, each)}{first}")


def _card(found: DataCheck, one: Finding) -> Card:
    shown = one.numbers[:_SIDE_BY_SIDE]
    return card_of(some_of(one.samples, len(shown)), {"why": [one.why]}, map(found.places.place, shown), _SIDE)


def _heading(kind: str, each: Sequence[Finding]) -> str:
    return f"{KINDS[kind].title} ({KINDS[kind].severity}, {len(each):,})"
