"""The report: cuts that were split or declined and the reasons, equality of training, and replay times."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

from benchmarks.prefix.cuts import BOUNDARIES
from benchmarks.rows import Row

Suites = Mapping[str, tuple[Sequence[str], Mapping[str, Row]]]  # all architectures, and rows by architecture
Found = tuple[str, str, str, Row]  # suite, architecture, boundary and findings


def write_table(path: Path, suites: Suites) -> None:
    """Write the report over all suites."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table(suites))


def table(suites: Suites) -> str:
    """Return the report as Markdown."""
    found = [
        (suite, name, boundary, cut)
        for suite, (names, rows) in suites.items()
        for name in names
        for boundary, cut in rows.get(name, {}).get("boundaries", {}).items()
    ]
    parts = [_heading(suites, found), _counts(found), _costs(found), _unequal(found), _declined(found)]
    return "\n\n".join([*parts, _little_skipped(found), _not_cut(suites), _each(found)]) + "\n"


def _heading(suites: Suites, found: list[Found]) -> str:
    rows = [rows[name] for names, rows in suites.values() for name in names if name in rows]
    split = [cut for *_, cut in found if cut["split"]]
    equal = sum(cut["equal"] for cut in split)
    same = sum(bool(cut.get("equal_in_same_batches")) for cut in split)
    minutes = sum(row.get("seconds", 0.0) for row in rows) / 60
    boundaries = "\n".join(f"- **{name}**: {meaning}." for name, meaning in BOUNDARIES.items())
    return f"""# The frozen prefix

**{len(split)} of {len(found)} cuts split; {equal} of these train bit for bit as without the cache, {same} more if \
batches stay the same.** \
{len(rows)} of {sum(len(names) for names, _ in suites.values())} architectures were run.

Written by `python -m benchmarks.prefix` on {date.today().isoformat()}: \
{"; ".join(sorted({row["versions"] for row in rows if row.get("versions")}))}, Python {platform.python_version()}, \
{os.cpu_count()} CPU cores, one thread, {minutes:.0f} minutes. Random weights, small images and configurations. \
All of torchvision's classifiers, one small architecture of each timm module, every classification class of \
Hugging Face. Each is cut at three boundaries:

{boundaries}

`cut_prefix` verifies every cut that it splits. Here the model then trains for six steps of AdamW, with and without \
the cached features, in fp32 on the CPU, in batches that are shuffled after the first epoch. Parameters, buffers, \
losses and the random state must be equal. Times are for two samples on a shared machine, and indicative only."""


def _counts(found: list[Found]) -> str:
    lines = ["| suite | boundary | cut | split | | equal bit for bit | multiply-adds skipped, median |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for suite, boundary in dict.fromkeys((suite, boundary) for suite, _, boundary, _ in found):
        cuts = [cut for one, _, other, cut in found if (one, other) == (suite, boundary)]
        split = [cut for cut in cuts if cut["split"]]
        share = f"{statistics.median(cut['share'] for cut in split):.0%}" if split else "-"
        equal = sum(cut["equal"] for cut in split)
        part = f"{len(split) / len(cuts):.0%}"
        lines.append(f"| {suite} | {boundary} | {len(cuts)} | {len(split)} | {part} | {equal} | {share} |")
    return "\n".join(lines)


def _costs(found: list[Found]) -> str:
    lines = [
        "## Costs\n",
        "A replay up to the head is all overhead except for one layer: the Python code of the model, placeholders and "
        "returning stored activations. A cut traces the model twice and verifies the result.\n",
        "| suite | plain forward, ms | replay up to the head, ms | range | cut, ms | in forward passes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for suite in dict.fromkeys(suite for suite, *_ in found):
        cuts = [cut for one, _, boundary, cut in found if (one, boundary) == (suite, "head") and cut["split"]]
        if not cuts:
            continue
        replays = [cut["replay_ms"] for cut in cuts]
        passes = statistics.median(cut["cut_ms"] / cut["plain_ms"] for cut in cuts)
        lines.append(
            f"| {suite} | {_median(cuts, 'plain_ms'):.1f} | {_median(cuts, 'replay_ms'):.2f} "
            f"| {min(replays):.2f} to {max(replays):.2f} | {_median(cuts, 'cut_ms'):.0f} | {passes:.0f} |"
        )
    return "\n".join(lines)


def _median(cuts: Iterable[Row], field: str) -> float:
    return float(statistics.median(cut[field] for cut in cuts))


def _unequal(found: list[Found]) -> str:
    unequal = [one for one in found if one[3]["split"] and not one[3]["equal"]]
    lines = [
        f"- {suite} `{name}`, {boundary}: {cut['why']}. " + _EXPLAINED[cut.get("equal_in_same_batches")]
        for suite, name, boundary, cut in unequal
    ]
    if lines:
        lines.insert(0, _ROUNDING)
    vague = [f"`{name}`" for _, name, _, cut in found if cut["split"] and not cut.get("finite", True)]
    if vague:
        lines += ["", f"Equal, with non-finite values: {', '.join(dict.fromkeys(vague))}."]
    return "\n".join(["## Not equal\n", *(lines or ["None."])])


_EXPLAINED = {
    True: "Equal in the same batches: rounding.",
    False: "**Unexplained.**",
    None: "Not tried in the same batches.",
}
_ROUNDING = """The rounding of a sample may depend on its position in the batch, for example in a matrix product whose \
number of rows is not a multiple of the tile size. Its stored activations then differ in the last bit from those that \
plain training computes in another batch. Each of these was trained again in the same batches that filled the store.
"""


def _declined(found: list[Found]) -> str:
    declined = [one for one in found if not one[3]["split"]]
    kinds = Counter(_kind(cut["reason"]) for *_, cut in declined)
    lines = ["## Declined\n", "| reason | cuts |", "| --- | --- |"]
    lines += [f"| {kind} | {count} |" for kind, count in kinds.most_common()]
    lines += ["", "| suite | architecture | boundary | reason |", "| --- | --- | --- | --- |"]
    lines += [f"| {suite} | {name} | {boundary} | {_cell(cut['reason'])} |" for suite, name, boundary, cut in declined]
    return "\n".join(lines) if declined else "## Declined\n\nNone."


def _kind(reason: str) -> str:
    """Return a reason without the names in it."""
    return _cell(re.sub(r"'[^']*'", "...", reason))


def _cell(text: str) -> str:
    return text.replace("|", "/")


def _little_skipped(found: list[Found]) -> str:
    """Return the section on cuts that skip almost nothing, with the operation that ends each prefix."""
    little = [one for one in found if one[3]["split"] and one[3]["share"] < 0.05]
    lines = ["## Split, with less than 5 % of the multiply-adds skipped\n"]
    lines += ["| suite | architecture | boundary | end of the prefix |", "| --- | --- | --- | --- |"]
    lines += [f"| {suite} | {name} | {boundary} | {cut['cause']} |" for suite, name, boundary, cut in little]
    return "\n".join(lines) if little else "\n".join([*lines[:1], "None."])


def _not_cut(suites: Suites) -> str:
    lines = ["## Not cut\n"]
    for suite, (names, rows) in suites.items():
        for row in (rows[name] for name in names if name in rows and "boundaries" not in rows[name]):
            lines.append(f"- {suite} `{row['name']}`: {row['status']}, {'; '.join(row['causes'].values())[:200]}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "None."])


def _each(found: list[Found]) -> str:
    lines = ["## All split cuts\n"]
    lines += ["| suite | architecture | boundary | tensors | kB/sample | skipped | plain, ms | replay, ms | equal |"]
    lines += ["|" + " --- |" * 9]
    for suite, name, boundary, cut in found:
        if cut["split"]:
            lines.append(
                f"| {suite} | {name} | {boundary} | {cut['tensors']} | {cut['bytes'] / 1000:.1f} | {cut['share']:.0%} "
                f"| {cut['plain_ms']:.1f} | {cut['replay_ms']:.2f} | {'yes' if cut['equal'] else '**no**'} |"
            )
    return "\n".join(lines)
