"""The table of a family."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from benchmarks.coverage.checks import CHECKS
from benchmarks.rows import Row

_MARKS = {True: "yes", False: "**no**", None: "-"}


def write_table(path: Path, title: str, names: Sequence[str], rows: Mapping[str, Row]) -> None:
    """Write the table of a family, given the names of all architectures and the rows of those checked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table(title, names, rows))


def table(title: str, names: Sequence[str], rows: Mapping[str, Row]) -> str:
    """Return the table as Markdown: the environment, counts, failures with their causes, and all architectures."""
    done = [rows[name] for name in names if name in rows]
    lines = [f"# Coverage: {title}", "", *_where(names, done), "", *_counts(done), "", *_misses(done)]
    return "\n".join([*lines, "", "## Every architecture", "", *_each(done), ""])


def _where(names: Sequence[str], done: Sequence[Row]) -> list[str]:
    used = sorted({row["versions"] for row in done if row.get("versions")})
    seconds = sum(row.get("seconds", 0.0) for row in done)
    fine = sum(row["status"] in ("ok", "no classifier") for row in done)
    return [
        f"**{fine} of {len(names)} pass.** {len(names) - len(done)} not run yet.",
        "",
        f"Written by `python -m benchmarks.coverage` on {date.today().isoformat()}: {'; '.join(used)}, "
        f"Python {platform.python_version()}, {os.cpu_count()} CPU cores, one thread per process, {seconds / 60:.0f} "
        f"minutes of one core in total. Random weights, offline.",
    ]


def _counts(done: Sequence[Row]) -> list[str]:
    lines = ["| check | passed | failed | not applicable, or not reached |", "| --- | --- | --- | --- |"]
    for check, meaning in CHECKS.items():
        values = [(row.get("checks") or {}).get(check) for row in done if row["status"] != "no classifier"]
        lines.append(f"| {meaning} | {values.count(True)} | {values.count(False)} | {values.count(None)} |")
    statuses = [row["status"] for row in done]
    lines += ["", f"Without a classifier, as a HeadError correctly reports: {statuses.count('no classifier')}. "]
    lines[-1] += f"Not buildable or checkable here: {statuses.count('not checked')}. "
    lines[-1] += f"With inputs set by `example_input_array`: {sum(bool(row.get('told')) for row in done)}."
    return lines


def _misses(done: Sequence[Row]) -> list[str]:
    lines = ["## Failures", ""]
    misses = [row for row in done if row["status"] in ("miss", "not checked")]
    for row in misses:
        causes = "; ".join(f"{CHECKS.get(check, 'building')}: {cause}" for check, cause in row["causes"].items())
        lines.append(f"- `{row['name']}`: {causes}")
    return lines if misses else [*lines, "None."]


def _each(done: Sequence[Row]) -> list[str]:
    heading = ["architecture", *CHECKS, "stages", "parameters, M", "seconds", "note"]
    lines = [f"| {' | '.join(heading)} |", f"|{' --- |' * len(heading)}"]
    for row in done:
        checks = row.get("checks") or {}
        if row["status"] in ("no classifier", "not checked"):
            marks = [row["status"], *[""] * (len(CHECKS) - 1)]
        else:
            marks = [_MARKS[checks.get(check)] for check in CHECKS]
        size = f"{row.get('parameters', 0) / 1e6:.2f}"
        cells = [row["name"], *marks, str(row.get("stages", "")), size, f"{row.get('seconds', 0):.1f}"]
        told = "inputs set by `example_input_array`" if row.get("told") else ""
        note = "; ".join(part for part in (row.get("note"), told) if part)
        lines.append(f"| {' | '.join([*cells, note])} |")
    return lines
