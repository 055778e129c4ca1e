"""Compare several processes with one: the same result, also through kills, and what it costs in traffic and time.

    python -m benchmarks.distributed
    python -m benchmarks.distributed --suite equality
    python -m benchmarks.distributed --sample --out sample.md     # two minutes

The processes run on this machine and on the CPU, connected by gloo. An interrupted run resumes.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.distributed import equality, kills, throughput, traffic
from benchmarks.machine import processor
from benchmarks.rows import Row, append_row, read_rows

RESULTS = Path(__file__).parents[1] / "results" / "distributed.md"
SUITES: dict[str, ModuleType] = {
    "equality": equality,
    "kills": kills,
    "traffic": traffic,
    "throughput": throughput,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the missing trials and write the table. Return 1 if there are faults."""
    options = _parser().parse_args(arguments)
    logging.disable()
    torch.set_num_threads(1)
    rows_path = options.out.with_suffix(".jsonl")
    done = {tuple(row["key"]) for row in read_rows(rows_path)}
    for suite in [options.suite] if options.suite else SUITES:
        for trial in SUITES[suite].trials(sample=options.sample):
            if (suite, *trial) in done:
                continue
            begun = time.monotonic()
            found = SUITES[suite].run(*trial)
            took = round(time.monotonic() - begun, 1)
            append_row(rows_path, {"key": [suite, *trial], **found, "took": took})
            print(f"{suite}, {', '.join(trial)}: {found}", flush=True)
    rows = read_rows(rows_path)
    options.out.write_text(report(rows))
    print(f"wrote {options.out}")
    faults = [row for row in rows if SUITES[row["key"][0]].wrong(row)]
    for row in faults:
        print(row, file=sys.stderr)
    return int(bool(faults))


def report(rows: Sequence[Row]) -> str:
    """Return the tables as Markdown."""
    faults = sum(SUITES[row["key"][0]].wrong(row) for row in rows)
    minutes = sum(row["took"] for row in rows) / 60
    parts = [
        "# Several processes",
        f"**{faults} faults in {len(rows)} trials.**",
        f"Written by `python -m benchmarks.distributed` on {date.today().isoformat()}: torch {version('torch')}, "
        f"Python {platform.python_version()}, {processor()}, {os.cpu_count()} cores, {minutes:.0f} minutes.",
    ]
    for name, module in SUITES.items():
        own = [row for row in rows if row["key"][0] == name]
        if own:
            parts.append(f"## {module.TITLE}\n\n{(module.__doc__ or '').strip()}\n\n{module.table(own)}")
    return "\n\n".join(parts) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--suite", choices=SUITES, help="run only this suite")
    parser.add_argument("--sample", action="store_true", help="run a few trials of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table, beside its rows (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
