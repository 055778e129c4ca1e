"""The table of the peers: medians and ranges over the rounds, and ratios to finetune."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import processor
from benchmarks.rows import Row

_OURS = ("finetune", "hand_tricks")
_SETTINGS = ("part", "precision", "device", "folder", "samples", "epochs", "size", "batch_size", "threads")


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the table of all rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table(rows))


def table(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, with a section per workload and a line per peer."""
    done = [row for row in rows if "missing" not in row]
    timed = {row["peer"] for row in done}
    missing = sorted({f"{row['peer']} ({row['missing']})" for row in rows if row["peer"] not in timed})
    versions = sorted({row["version"] for row in done if row["version"]})
    parts = [
        "# finetune and its peers",
        f"Written by `python -m benchmarks.peers` on {date.today().isoformat()}: {', '.join(versions)}, "
        f"Python {platform.python_version()}, {processor()}, {os.cpu_count()} cores. ResNet-18, random weights, AdamW, "
        f"no validation, no logging; `benchmarks/peers/__init__.py` describes the fairness rules. Times are for a "
        f"whole `fit`, including the time finetune spends on computing and caching features.",
        f"Not installed: {', '.join(missing)}." if missing else "All peers were installed.",
    ]
    for settings in dict.fromkeys(tuple(row[name] for name in _SETTINGS) for row in done):
        of_it = [row for row in done if tuple(row[name] for name in _SETTINGS) == settings]
        parts.append(_section(dict(zip(_SETTINGS, settings, strict=True)), of_it))
    return "\n\n".join(parts) + "\n"


def _section(settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    times = {
        peer: [row["seconds"] for row in rows if row["peer"] == peer] for peer in dict.fromkeys(r["peer"] for r in rows)
    }
    form = "a folder of JPEGs" if settings["folder"] else "in memory"
    lines = [
        f"## {settings['part']}, {settings['precision']} on {settings['device']}",
        "",
        f"{settings['samples']} images of {settings['size']} px, {form}, batches of {settings['batch_size']}, "
        f"{settings['epochs']} epochs, {settings['threads']} threads.",
        "",
        *_ratios(times),
        "",
        "| | seconds, median | range | rounds | of finetune's | range by round | training loss | accuracy | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for peer in sorted(times, key=lambda name: statistics.median(times[name])):
        lines.append(_line(peer, [row for row in rows if row["peer"] == peer], rows))
    return "\n".join(lines)


def _line(peer: str, rows: Sequence[Row], all_rows: Sequence[Row]) -> str:
    seconds = [row["seconds"] for row in rows]
    ours = {row["round"]: row["seconds"] for row in all_rows if row["peer"] == "finetune"}
    by_round = [row["seconds"] / ours[row["round"]] for row in rows if row["round"] in ours]
    loss, accuracy = (statistics.median(row[name] for row in rows) for name in ("loss", "accuracy"))
    wrong = "; ".join(dict.fromkeys(row["wrong"] for row in rows if row["wrong"]))
    hand = [row["accuracy"] for row in all_rows if row["peer"] == "hand"]
    if hand and accuracy < statistics.median(hand) - 0.15:
        wrong = "; ".join(filter(None, [wrong, "learned less than the hand-written loop"]))
    ratio, spread = ("-", "-")
    if by_round:
        ratio, spread = f"{statistics.median(by_round):.2f}", f"{min(by_round):.2f} to {max(by_round):.2f}"
    return (
        f"| {peer} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} | {len(rows)} "
        f"| {ratio} | {spread} | {loss:.3f} | {accuracy:.2f} | {wrong or 'verified'} |"
    )


def _ratios(times: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a sentence that compares finetune with the fastest peer and with the same optimizations by hand."""
    medians = {peer: statistics.median(seconds) for peer, seconds in times.items()}
    peers = {peer: seconds for peer, seconds in medians.items() if peer not in _OURS}
    if "finetune" not in medians:
        return []
    ours, sentences = medians["finetune"], []
    if peers:
        fastest = min(peers, key=lambda peer: peers[peer])
        sentences.append(f"**{peers[fastest] / ours:.2f} times as fast as the fastest peer, {fastest}.**")
    if "hand_tricks" in medians:
        own = ours / medians["hand_tricks"] - 1
        sentences.append(f"The library's overhead over the same optimizations by hand: {own:+.1%}.")
    return [" ".join(sentences)]
