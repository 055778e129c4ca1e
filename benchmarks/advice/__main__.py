"""`python -m benchmarks.advice`; see `benchmarks/advice/__init__.py`. A run that was ended goes on where it was."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.advice.situations import Row, Situation, measure, situations
from benchmarks.advice.table import write_table

RESULTS = Path(__file__).parent.parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        part, parts = options.part
        missing = _missing(read(options.out), options.seeds)
        for number, (situation, seed) in enumerate(missing[part::parts], 1):
            row = measure(situation, seed)
            with (options.out / f"rows-{part}.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{number} of {len(missing[part::parts])}: {situation}, seed {seed}: {row['accuracy']}", flush=True)
    write_table(RESULTS / "advice.md", read(options.out))


def _missing(rows: list[Row], seeds: int) -> list[tuple[Situation, int]]:
    """Return what is not measured yet, seed by seed, so that an ended run has looked at all situations."""
    done = {(row["pair"], row["shots"], row["imbalance"], row["seed"]) for row in rows}
    wanted = [(situation, seed) for seed in range(seeds) for situation in situations()]
    return [(each, seed) for each, seed in wanted if (each.pair, each.shots, each.imbalance, seed) not in done]


def read(folder: Path) -> list[Row]:
    """Return the rows there are."""
    lines = [line for path in sorted(folder.glob("rows-*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]  # not one that was being written


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    return int(part), int(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.advice", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="repetitions of each situation (default 5)")
    parser.add_argument("--part", type=_part, default=(0, 1), help="such as 0/2: the first of two processes")
    parser.add_argument("--table", action="store_true", help="only write the table from the rows there are")
    parser.add_argument("--out", type=Path, default=RESULTS / "advice", help="folder of the rows")
    return parser


if __name__ == "__main__":
    main()
