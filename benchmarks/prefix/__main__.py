"""`python -m benchmarks.prefix`: cut every architecture at three boundaries, and train from what was stored.

A run that was ended goes on where it was; `--retry-failed` checks those anew that were not as they should be.
Cached training is held against uncached for six steps of AdamW in fp32 on one thread of the CPU, where the
trained parameters, buffers, losses and the random state must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import time
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.coverage import results
from benchmarks.coverage.workers import run_jobs
from benchmarks.prefix.checks import row
from benchmarks.prefix.suites import SUITES, load_suite
from benchmarks.prefix.table import write_table


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for, and write the table of all that was ever run."""
    options = _parser().parse_args(arguments)
    suites = {name: load_suite(name).names() for name in SUITES}
    jobs = []
    for suite, names in suites.items():
        done = results.read(options.out, suite)
        for name in names:
            again = name not in done or (options.retry_failed and done[name]["status"] in ("miss", "not checked"))
            if again and options.suite in (None, suite) and fnmatch(name, options.only):
                jobs.append((suite, name))
    start = time.monotonic()
    for count, found in enumerate(run_jobs(jobs, options.jobs, options.time_limit, row), 1):
        results.append(options.out, found)
        left = (time.monotonic() - start) / count * (len(jobs) - count) / 60
        print(
            f"[{count}/{len(jobs)}, {left:.0f} min left] {found['family']} {found['name']}: {found['status']} "
            f"{found.get('seconds', '')} {'; '.join(found['causes'].values())}",
            flush=True,
        )
    path = options.out.with_suffix(".md")
    write_table(path, {suite: (names, results.read(options.out, suite)) for suite, names in suites.items()})
    print(f"wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, help="one suite instead of all")
    parser.add_argument("--only", default="*", metavar="GLOB", help="architectures whose names match")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes (default 1)")
    parser.add_argument("--retry-failed", action="store_true", help="check misses of earlier runs anew")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for one architecture")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/prefix"), help="folder of the rows")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
