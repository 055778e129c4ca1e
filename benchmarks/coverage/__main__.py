"""Check every installed architecture and write a table per family.

    python -m benchmarks.coverage
    python -m benchmarks.coverage --family timm --only "vit_*" --jobs 4
    python -m benchmarks.coverage --sample       # a few small models, without a table

An interrupted run resumes; --retry-failed repeats the architectures that failed. Checkpoints are written to the
system's temporary folder; set TMPDIR to use another, such as one in memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.coverage import results
from benchmarks.coverage.family import FAMILIES, load_family
from benchmarks.coverage.table import write_table
from benchmarks.coverage.workers import Job, run_jobs

_PASSED = ("ok", "no classifier")


def main(arguments: list[str] | None = None) -> int:
    """Check the missing architectures and write the tables. Return 1 if one of the sample fails, else 0."""
    options = _parser().parse_args(arguments)
    families = [options.family] if options.family else _installed()
    together: list[Job] = []
    alone: list[Job] = []
    for name in families:
        family = load_family(name)
        done = {} if options.sample else results.read(options.out, name)
        for architecture in family.sample if options.sample else family.names():
            found = done.get(architecture)
            again = options.retry_failed and found is not None and found["status"] not in _PASSED
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
        misses += row["status"] not in _PASSED
        per_job = (time.monotonic() - start) / count
        print(
            f"[{count}/{len(jobs)}, {per_job * (len(jobs) - count) / 60:.0f} min left] {row['family']} {row['name']}: "
            f"{row['status']} {row.get('seconds', '')} {causes}",
            flush=True,
        )
    return misses


def _installed() -> list[str]:
    """Return the families whose packages are installed."""
    found = []
    for name in FAMILIES:
        try:
            load_family(name).names()
            found.append(name)
        except ImportError as error:
            print(f"{name}: not installed, {error}", file=sys.stderr)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=list(FAMILIES), help="check only this family")
    parser.add_argument("--only", default="*", metavar="GLOB", help="check only architectures with matching names")
    parser.add_argument("--sample", action="store_true", help="check a few small models; exit code 1 on a failure")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="repeat the failures of earlier runs")
    parser.add_argument(
        "--time-limit", type=float, default=300.0, help="seconds per architecture (default: %(default)g)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage"), help="folder for the rows")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
