"""Cut every architecture at three boundaries, and compare training from cached features with plain training.

    python -m benchmarks.prefix
    python -m benchmarks.prefix --suite torchvision --only "resnet*"

Each comparison takes six steps of AdamW in fp32 on one CPU thread. Trained parameters, buffers, losses and the random
state must be equal bit for bit. An interrupted run resumes; --retry-failed repeats the architectures that failed.
"""

from __future__ import annotations

import argparse
import time
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.coverage import results
from benchmarks.coverage.workers import run_jobs
from benchmarks.prefix.cuts import check_architecture
from benchmarks.prefix.suites import SUITES, load_suite
from benchmarks.prefix.table import write_table


def main(arguments: list[str] | None = None) -> int:
    """Run the missing architectures and write the table of all results."""
    options = _parser().parse_args(arguments)
    suites = {name: load_suite(name).names() for name in SUITES}
    jobs = []
    for suite, names in suites.items():
        done = results.read(options.out, suite)
        for name in names:
            missing = name not in done or (options.retry_failed and done[name]["status"] in ("miss", "not checked"))
            if missing and options.suite in (None, suite) and fnmatch(name, options.only):
                jobs.append((suite, name))
    start = time.monotonic()
    for count, found in enumerate(run_jobs(jobs, options.jobs, options.time_limit, check_architecture), 1):
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, help="run only this suite")
    parser.add_argument("--only", default="*", metavar="GLOB", help="run only architectures with matching names")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes (default: %(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="repeat the failures of earlier runs")
    parser.add_argument(
        "--time-limit", type=float, default=300.0, help="seconds per architecture (default: %(default)g)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/prefix"), help="folder for the rows")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
