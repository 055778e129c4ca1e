"""`python -m benchmarks.accuracy`: every contender on every pair, seed by seed; see `benchmarks/accuracy/__init__.py`.

A run that was ended goes on where it was: rows that are there are not run again.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.contenders import CONTENDERS, run
from benchmarks.accuracy.table import table
from benchmarks.accuracy.work import Task
from benchmarks.pairs import PAIRS, Data
from benchmarks.rows import append_row, read_rows

Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for, and write the table of all rows that there are for it."""
    options = _parser().parse_args(arguments)
    rows = read_rows(options.out / "rows.jsonl")
    left_out: dict[str, str] = {}
    for name, task in _asked(options):
        if name in left_out or any(_is_of(row, name, task) for row in rows):
            continue
        source, data = _given(task.pair, task.seed, task.shots)
        try:
            row = run(name, task, source, data, PAIRS[task.pair].num_classes)
        except ImportError as error:
            left_out[name] = str(error)
            continue
        rows.append(row)
        append_row(options.out / "rows.jsonl", row)
        print(f"{task} {name}: {row['accuracy']:.3f} in {row['seconds']:.1f} s {row['wrong']}", flush=True)
    asked = {(name, task) for name, task in _asked(options)}
    path = options.out.with_suffix(".md")
    path.write_text(table([row for row in rows if (row["contender"], _task_of(row)) in asked], left_out))
    print(f"wrote {path}")


def _asked(options: argparse.Namespace) -> Iterator[tuple[str, Task]]:
    """Yield the runs, seed by seed, so that a run that was ended has something of everything."""
    for seed in range(options.seeds):
        for pair in options.pairs:
            for shots, epochs in options.budgets:
                task = Task(pair, seed, shots, epochs, options.batch)
                yield from ((name, task) for name in options.contenders if not CONTENDERS[name].is_double(task))


@lru_cache(maxsize=4)
def _given(pair: str, seed: int, shots: int) -> tuple[torch.nn.Module, Data]:
    """Return the pretrained network and the pictures, once for all contenders."""
    return PAIRS[pair].model(seed), PAIRS[pair].data(seed, shots)


def _task_of(row: Row) -> Task:
    return Task(**{name: row[name] for name in Task.__dataclass_fields__})


def _is_of(row: Row, name: str, task: Task) -> bool:
    return row["contender"] == name and all(row[key] == value for key, value in asdict(task).items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--pairs", type=_names(list(PAIRS)), default=list(PAIRS), help=",".join(PAIRS))
    parser.add_argument(
        "--contenders", type=_names(list(CONTENDERS)), default=list(CONTENDERS), help=",".join(CONTENDERS)
    )
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0 on")
    parser.add_argument(
        "--budgets", type=_budgets, default=[(10, 5), (10, 15)], help="shots and epochs, as 10x5,10x15 (the default)"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/accuracy"), help="folder of the rows")
    return parser


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parsed(text: str) -> list[str]:
        given = text.split(",")
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: none of {', '.join(known)}")
        return given

    return parsed


def _budgets(text: str) -> list[tuple[int, int]]:
    try:
        return [(int(shots), int(epochs)) for shots, epochs in (budget.split("x") for budget in text.split(","))]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected shots and epochs as 10x5,10x15, but got {text!r}") from error


if __name__ == "__main__":
    torch.set_num_threads(1)  # the networks are small, and rows do not depend on the machine's cores
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    main()
