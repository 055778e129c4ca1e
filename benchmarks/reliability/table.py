"""The tables: counts of faults with all safeties in place, and without each."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from types import ModuleType

from benchmarks.rows import Row

Suites = Mapping[str, ModuleType]


def table(suites: Suites, rows: Sequence[Row], processor: str) -> str:
    """Return the report as Markdown."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "safetensors", "pillow"))
    took = sum(row["took"] for row in rows) / 60
    wrong = sum(_count(row, suites[row["key"][0]]) for row in rows if row["key"][0] in suites and _expected(row))
    heading = f"""# Reliability

**{wrong} faults with all safeties in place.**

Written by `python -m benchmarks.reliability` on {date.today().isoformat()}: {packages}, Python \
{platform.python_version()}, {processor}, {os.cpu_count()} cores, {took:.0f} minutes. A row that says *without* is a \
control: a safety of the library is taken out, so that faults are counted. Columns in bold count faults."""
    return "\n\n".join([heading, *(_suite(module, _of(name, rows)) for name, module in suites.items())]) + "\n"


def faults(suites: Suites, rows: Sequence[Row]) -> list[str]:
    """Return a line for each case with faults, and for each control without any."""
    found = []
    for name, module in suites.items():
        own = _of(name, rows)
        for row in own:
            if _expected(row) and _count(row, module):
                found.append(f"{name}, {row['key'][2]}: {row}")
        for safety in module.CONTROLS:
            without = [row for row in own if row["key"][1] == safety]
            if without and not any(_count(row, module) for row in without):
                found.append(f"{name}: no fault is counted without {safety}")
    return found


def _of(suite: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["key"][0] == suite]


def _expected(row: Row) -> bool:
    """Return whether a row has to be without faults: all safeties are in place, and the reader is ours."""
    return not row["key"][1] and not row.get("other")


def _count(row: Row, module: ModuleType) -> int:
    return sum(int(row[fault]) for fault in module.FAULTS)


def _suite(module: ModuleType, rows: Sequence[Row]) -> str:
    names = [*module.COUNTS.values()]
    bold = [f"**{name}**" if key in module.FAULTS else name for key, name in module.COUNTS.items()]
    extra = [name for name in ("latency", "megabytes", "seconds") if any(name in row for row in rows)]
    units = {"latency": "slowest end, s", "megabytes": "most memory, MB", "seconds": "slowest, s"}
    lines = ["| | " + " | ".join([*bold, *(units[name] for name in extra)]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(names) + len(extra)))
    for label, group in _groups(rows):
        counts = [f"{sum(row[key] for row in group):,}" for key in module.COUNTS]
        most = [f"{max(row.get(name, 0) for row in group):.{0 if name == 'megabytes' else 1}f}" for name in extra]
        lines.append(f"| {label} | " + " | ".join([*counts, *most]) + " |")
    doc = (module.__doc__ or "").strip()
    return f"## {module.TITLE}\n\n{doc}\n\n" + "\n".join(lines)


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield a label and rows: each case with all safeties in place, and each control over all its cases."""
    cases = list(dict.fromkeys(row["key"][2] for row in rows if not row["key"][1]))
    for case in cases:
        yield case, [row for row in rows if not row["key"][1] and row["key"][2] == case]
    mine = [row for row in rows if _expected(row)]
    if len(cases) > 1:
        yield "*all of these*", mine
    for safety in dict.fromkeys(row["key"][1] for row in rows if row["key"][1]):
        yield f"*without* {safety}", [row for row in rows if row["key"][1] == safety]
