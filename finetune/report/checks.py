"""The section on the data: findings of `check_data`, by severity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune.data_check.data_check import DataCheck
from finetune.errors import FineTuneError
from finetune.report.blocks import Block, Note, Section, Table

_MOST_CHECKED = 10_000  # samples of each part, as each runs through the model once more
_MOST_SHOWN = 200
_MOST_NAMES = 3  # of a finding


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
    rows = [[row.kind, row.severity, _named(row.samples), row.why, row.advice] for row in found.findings[:_MOST_SHOWN]]
    if not rows:
        return Section("data", "Data", [*blocks, Note("Nothing was found.")])
    shown = f"The first {len(rows)} of {len(found):,} findings" if len(rows) < len(found) else "Findings"
    return Section("data", "Data", [*blocks, Table(shown, ["kind", "severity", "samples", "why", "advice"], rows, 5)])


def _named(samples: tuple[str, ...]) -> str:
    more = f" and {len(samples) - _MOST_NAMES:,} more" if len(samples) > _MOST_NAMES else ""
    return f"{', '.join(samples[:_MOST_NAMES])}{more}"
