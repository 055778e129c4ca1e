"""Train every contender on every pair, seed by seed; see `benchmarks/accuracy/__init__.py`.

An interrupted run resumes: saved rows are not measured again.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import torch

from benchmarks.accuracy.contenders import CONTENDERS, run
from benchmarks.accuracy.table import table
from benchmarks.accuracy.trial import Task
from benchmarks.pairs import PAIRS, Data
from benchmarks.rows import Row, append_row, read_rows


def main(arguments: list[str] | None = None) -> None:
    """Run the missing trials and write the table of all requested ones."""
    options = _parser().parse_args(arguments)
    rows = read_rows(options.out / "rows.jsonl")
    left_out: dict[str, str] = {}
    for name, task in _requested(options):
        if name in left_out or any(_is_of(row, name, task) for row in rows):
            continue
        source, data = _model_and_data(task.pair, task.seed, task.shots)
        try:
            row = run(name, task, source, data, PAIRS[task.pair].num_classes)
        except ImportError as error:
            left_out[name] = str(error)
            continue
        rows.append(row)
        append_row(options.out / "rows.jsonl", row)
        print(f"{task} {name}: {row['accuracy']:.3f} in {row['seconds']:.1f} s {row['wrong']}", flush=True)
    requested = set(_requested(options))
    path = options.out.with_suffix(".md")
    path.write_text(table([row for row in rows if (row["contender"], _task_of(row)) in requested], left_out))
    print(f"wrote {path}")


def _requested(options: argparse.Namespace) -> Iterator[tuple[str, Task]]:
    """Yield the trials seed by seed, so that an unfinished run covers all pairs and contenders."""
    for seed in range(options.seeds):
        for pair in options.pairs:
            for shots, epochs in options.budgets:
                task = Task(pair, seed, shots, epochs, options.batch)
                yield from ((name, task) for name in options.contenders if not CONTENDERS[name].is_redundant(task))


@lru_cache(maxsize=4)
def _model_and_data(pair: str, seed: int, shots: int) -> tuple[torch.nn.Module, Data]:
    """Return the pretrained network and the data, which all contenders share."""
    return PAIRS[pair].model(seed), PAIRS[pair].data(seed, shots)


def _task_of(row: Row) -> Task:
    return Task(**{name: row[name] for name in Task.__dataclass_fields__})


def _is_of(row: Row, name: str, task: Task) -> bool:
    return row["contender"] == name and all(row[key] == value for key, value in asdict(task).items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=_names(list(PAIRS)), default=list(PAIRS), help=", ".join(PAIRS))
    parser.add_argument(
        "--contenders", type=_names(list(CONTENDERS)), default=list(CONTENDERS), help=", ".join(CONTENDERS)
    )
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds (default: %(default)s)")
    parser.add_argument(
        "--budgets", type=_budgets, default=[(10, 5), (10, 15)], help="shots and epochs (default: 10x5,10x15)"
    )
    parser.add_argument("--batch", type=int, default=16, help="batch size (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/accuracy"), help="folder for the rows")
    return parser


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parsed(text: str) -> list[str]:
        given = text.split(",")
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return given

    return parsed


def _budgets(text: str) -> list[tuple[int, int]]:
    try:
        return [(int(shots), int(epochs)) for shots, epochs in (budget.split("x") for budget in text.split(","))]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected shots and epochs such as 10x5,10x15, but got {text!r}") from error


if __name__ == "__main__":
    torch.set_num_threads(1)  # small networks; and rows must not depend on the number of cores
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    main()
