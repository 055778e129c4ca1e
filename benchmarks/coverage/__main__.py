"""`python -m benchmarks.coverage`: check every architecture at hand and write a table for each family.

A run that was ended goes on where it was; `--retry-failed` checks those anew that were not as they should be.
Checkpoints are written to the system's folder for temporary files; TMPDIR names another, such as one in memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.coverage import results
from benchmarks.coverage.families import FAMILIES, load_family
from benchmarks.coverage.table import write_table
from benchmarks.coverage.workers import Job, run_jobs

_FINE = ("ok", "no classifier")


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return 1 if the sample has a miss."""
    options = _parser().parse_args(arguments)
    families = [options.family] if options.family else _installed()
    together: list[Job] = []
    alone: list[Job] = []
    for name in families:
        family = load_family(name)
        done = {} if options.sample else results.read(options.out, name)
        for architecture in family.sample if options.sample else family.names():
            found = done.get(architecture)
            again = options.retry_failed and found is not None and found["status"] not in _FINE
            if fnmatch(architecture, options.only) and (found is None or again):
                (alone if family.alone(architecture) else together).append((name, architecture))
    misses = _run(together, options, options.jobs) + _run(alone, options, 1)
    if options.sample:
        return int(misses > 0)
    for name in families:
        family = load_family(name)
        path = options.out.parent / f"{options.out.name}-{name}.md"
        write_table(path, family.title, family.names(), results.read(options.out, name))
        print(f"wrote {path}")
    return 0


def _run(jobs: list[Job], options: argparse.Namespace, workers: int) -> int:
    start, misses = time.monotonic(), 0
    for count, row in enumerate(run_jobs(jobs, workers, options.time_limit), 1):
        if not options.sample:
            results.append(options.out, row)
        causes = "; ".join(f"{check}: {cause}" for check, cause in row["causes"].items())
        misses += row["status"] not in _FINE
        per_job = (time.monotonic() - start) / count
        print(
            f"[{count}/{len(jobs)}, {per_job * (len(jobs) - count) / 60:.0f} min left] {row['family']} {row['name']}: "
            f"{row['status']} {row.get('seconds', '')} {causes}",
            flush=True,
        )
    return misses


def _installed() -> list[str]:
    """Return the families whose packages are there."""
    found = []
    for name in FAMILIES:
        try:
            load_family(name).names()
            found.append(name)
        except ImportError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=list(FAMILIES), help="one family instead of all")
    parser.add_argument("--only", default="*", metavar="GLOB", help="architectures whose names match")
    parser.add_argument("--sample", action="store_true", help="a few small models; exit code 1 on a miss")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--retry-failed", action="store_true", help="check misses of earlier runs anew")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for one architecture")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage"), help="folder of the rows")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
