"""The page of a `DataCheck`, as text and as HTML: a summary, and the findings by kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from finetune.data_check.findings import KINDS, SEVERITIES, Finding
from finetune.display import html
from finetune.display.figures import plain, wrapped
from finetune.display.numbers import and_more
from finetune.errors import DataError, printable, some_of
from finetune.interpret.pictures import thumbnail
from finetune.interpret.plots.sheet import Cell, Section

if TYPE_CHECKING:
    from finetune.data_check.data_check import DataCheck

_SHOWN_ROWS = 5  # of each kind
_SHOWN_NAMES = 4  # of each finding
_SHOWN_CELLS = 8  # of each kind, on the sheet
_SHOWN_PICTURES = 2  # of each finding
_CAPTION = 36  # characters of a line above a sample on the sheet

Grouped = list[tuple[str, Sequence[Finding]]]


def by_kind(findings: Sequence[Finding]) -> Grouped:
    """Return the findings of each kind that there is, the most severe kind first."""
    found = [(kind, [each for each in findings if each.kind == kind]) for kind in KINDS]
    return [(kind, each) for kind, each in found if each]


def to_text(check: DataCheck, rows: int | None = _SHOWN_ROWS) -> str:
    """Return the page as text, with `rows` findings of each kind, or all for None."""
    parts = ["\n".join(summary(check))]
    for kind, found in by_kind(check.findings):
        lines = [_heading(kind, len(found)), f"  {KINDS[kind].advice}"]
        lines += [f"    {_names(each)}: {printable(each.why)}" for each in found[:rows]]
        lines += [f"    {line}" for line in and_more(len(found), len(found) if rows is None else rows)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def to_html(check: DataCheck) -> str:
    """Return the page as HTML, with small images."""
    parts = [html.paragraph(*map(printable, summary(check)))]
    for kind, found in by_kind(check.findings):
        first = found[:_SHOWN_ROWS]
        pictures = [_pictures(check, each) for each in first]
        lines = [[picture, _names(each), printable(each.why)] for picture, each in zip(pictures, first, strict=True)]
        skipped = 0 if any(pictures) else 1
        header = ["", "samples", "finding"][skipped:]
        parts.append(html.table(header, [line[skipped:] for line in lines], text=3, caption=_heading(kind, len(found))))
        parts.append(html.paragraph(KINDS[kind].advice, *and_more(len(found), _SHOWN_ROWS)))
    return "".join(parts)


def to_sections(check: DataCheck) -> Iterator[Section]:
    """Yield the first findings of each kind as samples on a sheet."""
    for kind, found in by_kind(check.findings):
        cells: list[Cell] = []
        for each in found:
            numbers = each.numbers[: _SHOWN_PICTURES * 2] if len(found) == 1 else each.numbers[:_SHOWN_PICTURES]
            if len(cells) + len(numbers) > _SHOWN_CELLS:
                break
            for place, number in enumerate(numbers):
                source, index = check.places.place(number)
                name = check.places.name(number)
                cells.append(Cell(source, index, name, _caption(name, "" if place else each.why)))
        yield Section(f"{KINDS[kind].title} ({KINDS[kind].severity}, {len(found):,})", cells)


def summary(check: DataCheck) -> list[str]:
    """Return lines on the size of the data, the number of findings, the checks made, and those left out."""
    sizes = list(map(len, check.places.sources))
    named = [f"{size:,} {name}" for size, name in zip(sizes, ("training", "validation"), strict=False)]
    lines = [f"Checked {' and '.join(named)} sample{'s' * (sum(sizes) != 1)}: {_counts(check.findings)}."]
    lines.append(f"Checked for {_listed(check.checked)}.")
    lines += [f"Left out: {'; '.join(check.left_out)}."] if check.left_out else []
    return lines


def _caption(name: str, why: str) -> str:
    """Return the end of a name, which differs most, and the reason on two lines."""
    name, why = (" ".join(printable(text).split()) for text in (name, why))
    end = name if len(name) <= _CAPTION else f"…{name[1 - _CAPTION :]}"
    return plain(f"{end}\n{wrapped(why, _CAPTION)}")


def _counts(findings: Sequence[Finding]) -> str:
    counts = {severity: sum(each.severity == severity for each in findings) for severity in SEVERITIES}
    found = [f"{count:,} {severity}{'s' * (count != 1)}" for severity, count in counts.items() if count]
    return _listed(found) if found else "nothing was found"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _heading(kind: str, count: int) -> str:
    return f"{KINDS[kind].severity}: {KINDS[kind].title} ({count:,})"


def _names(found: Finding) -> str:
    return printable(some_of(found.samples, _SHOWN_NAMES))


def _pictures(check: DataCheck, found: Finding) -> str:
    images = [_picture(check, number) for number in found.numbers[:_SHOWN_PICTURES]]
    return html.Markup("".join(image for image in images if image))


def _picture(check: DataCheck, number: int) -> html.Markup | None:
    try:
        picture = thumbnail(*check.places.place(number))
    except DataError:
        return None
    return None if picture is None else html.image(picture, printable(check.places.name(number)))
