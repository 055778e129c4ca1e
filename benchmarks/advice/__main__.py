"""Measure how often `advise` is right; see `benchmarks/advice/__init__.py`. An interrupted run resumes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.advice.situations import Situation, measure, situations
from benchmarks.advice.table import write_table
from benchmarks.rows import Row, append_row, part, read_rows

RESULTS = Path(__file__).parent.parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing situations and write the table."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        own, parts = options.part
        missing = _missing(read(options.out), options.seeds)[own::parts]
        for number, (situation, seed) in enumerate(missing, 1):
            row = measure(situation, seed)
            append_row(options.out / f"rows-{own}.jsonl", row)
            print(f"{number} of {len(missing)}: {situation}, seed {seed}: {row['accuracy']}", flush=True)
    write_table(RESULTS / "advice.md", read(options.out))


def _missing(rows: list[Row], seeds: int) -> list[tuple[Situation, int]]:
    """Return the unmeasured situations, seed by seed, so that an unfinished run covers all of them."""
    done = {(row["pair"], row["shots"], row["imbalance"], row["seed"]) for row in rows}
    wanted = [(situation, seed) for seed in range(seeds) for situation in situations()]
    return [(each, seed) for each, seed in wanted if (each.pair, each.shots, each.imbalance, seed) not in done]


def read(folder: Path) -> list[Row]:
    """Return the saved rows of all parts."""
    return [row for path in sorted(folder.glob("rows-*.jsonl")) for row in read_rows(path)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.advice", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10, help="seeds per situation (default: %(default)s)")
    parser.add_argument("--part", type=part, default=(0, 1), help="part of the work, such as 0/2: the first of two")
    parser.add_argument("--table", action="store_true", help="write the table from the saved rows, run nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "advice", help="folder for the rows")
    return parser


if __name__ == "__main__":
    main()
