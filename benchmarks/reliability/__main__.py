"""Kill, stop and starve runs, damage their files, and give them hostile inputs; count what goes wrong.

    python -m benchmarks.reliability
    python -m benchmarks.reliability --suite kills --part 0/2
    python -m benchmarks.reliability --sample --out sample.md       # a minute

Each suite is also run without a safety of the library, as a control: faults have to be counted then. An interrupted
run resumes. Full disks need root, because they are file systems of their own.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.machine import processor
from benchmarks.reliability import damage, disks, inputs, kills, power, stops
from benchmarks.reliability.table import faults, table
from benchmarks.rows import append_row, part, read_rows

RESULTS = Path(__file__).parents[1] / "results" / "reliability.md"
SUITES: dict[str, ModuleType] = {
    "kills": kills,
    "power": power,
    "damage": damage,
    "stops": stops,
    "disks": disks,
    "inputs": inputs,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the missing trials and write the table. Return 1 if there are faults, or none without a safety."""
    options = _parser().parse_args(arguments)
    logging.disable()
    torch.set_num_threads(1)
    rows_path = options.out.with_suffix(".jsonl")
    done = {tuple(row["key"]) for row in read_rows(rows_path)}
    number, parts = options.part
    chosen = [options.suite] if options.suite else list(SUITES)
    if "disks" in chosen and os.geteuid() != 0:
        chosen.remove("disks")
        print("disks: left out, because only root can mount the small disks")
    jobs = [(suite, *trial) for suite in chosen for trial in SUITES[suite].trials(sample=options.sample)]
    for suite, safety, case, i in [job for k, job in enumerate(jobs) if k % parts == number and job not in done]:
        begun = time.monotonic()
        found = SUITES[suite].run(safety, case, random.Random(f"{suite} {safety} {case} {i}"))
        seconds = round(time.monotonic() - begun, 1)
        append_row(rows_path, {"key": [suite, safety, case, i], **found, "took": seconds, "machine": processor()})
        print(f"{suite}, {case}{f', without {safety}' if safety else ''}: {found}", flush=True)
    rows = read_rows(rows_path)
    text = table({name: SUITES[name] for name in chosen}, rows, processor())
    options.out.write_text(text)
    print(f"wrote {options.out}")
    wrong = faults({name: SUITES[name] for name in chosen}, rows)
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--suite", choices=SUITES, help="run only this suite")
    parser.add_argument("--sample", action="store_true", help="run a few trials of each kind")
    parser.add_argument("--part", type=part, default=(0, 1), metavar="K/N", help="run one of N parts, such as 0/2")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table, beside its rows (default: %(default)s)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
