"""What papers say of strategies, as experiments over the pairs of `benchmarks.pairs`.

    python -m benchmarks.strategies                    # all of it, and the table
    python -m benchmarks.strategies --part 0/2         # beside another process with 1/2, which shares the work
    python -m benchmarks.strategies --data dogs --model resnet18
    python -m benchmarks.strategies --data Flowers102 --root data --model resnet18

The last two compare frozen, partly frozen and fine-tuned on real pictures: those of a folder with a folder per class,
or a data set of torchvision that was downloaded before, or is with --download. Runs that are there are not done again,
so that a run goes on where it was; the table is written of what there is.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.machine import processor
from benchmarks.pairs import PAIRS
from benchmarks.rows import append_row, part, read_rows
from benchmarks.strategies.plan import Measured, stages
from benchmarks.strategies.real import MissingDataError, report
from benchmarks.strategies.table import table
from benchmarks.strategies.work import Row, run

RESULTS = Path(__file__).parent.parent / "results" / "strategies"
_EVERY = 60  # seconds between lines of progress


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for, and write the table."""
    options = _parser().parse_args(arguments)
    if options.data:
        return _on_real_data(options)
    torch.set_num_threads(1)
    pairs = list(options.pairs or PAIRS)
    if not options.table:
        measure(pairs, options.part, options.out, options.minutes)
    path = options.out.with_suffix(".md")
    path.write_text(table(Measured(read(options.out), pairs), machine()))
    print(f"wrote {path}")
    return 0


def _on_real_data(options: argparse.Namespace) -> int:
    try:
        text = report(
            options.data, options.model, options.root, options.download, options.out / "real",
            budget=options.epochs, seeds=options.seeds, weights=None if options.weights == "none" else options.weights,
        )  # fmt: skip
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    path = options.out.with_name(f"strategies-{Path(options.data).name}-{options.model.replace('/', '-')}.md")
    path.write_text(f"{text}\n{machine()}\n")
    print(f"{text}\nwrote {path}")
    return 0


def measure(pairs: Sequence[str], part: tuple[int, int], out: Path, minutes: float = float("inf")) -> None:
    """Do every task that is not done, and note each as it ends: first those of this part, then what others left."""
    for pair in pairs:
        PAIRS[pair].model()  # so that no run waits for its backbone
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = {}
    begun = told = time.monotonic()
    number, of = part
    for stage in stages(pairs, rows):
        for task in [*stage[number::of], *stage]:
            if task.key not in rows:
                rows |= read(out)
            if task.key in rows:
                continue
            rows[task.key] = row = run(task)
            append_row(out / "rows.jsonl", row)
            now = time.monotonic()
            if now - told > _EVERY:
                told = now
                left = sum(one.key not in rows for one in stage)
                print(f"{now - begun:.0f} s, {left} of {len(stage)} left in this stage: {task}", flush=True)
            if now - begun > 60 * minutes:
                print(f"ended after {minutes:g} minutes, as asked")
                return


def read(out: Path) -> dict[str, Row]:
    """Return the rows that are there, by task."""
    return {row["key"]: row for row in read_rows(out / "rows.jsonl")}


def machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pillow", "scikit-learn", "matplotlib"))
    return (
        f"{processor()}, {platform.system()}, {torch.get_num_threads()} thread, Python {platform.python_version()}, "
        f"{packages}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies", description=__doc__)
    parser.add_argument("--pairs", action="append", choices=list(PAIRS), help="one instead of all; may be repeated")
    parser.add_argument("--part", type=part, default=(0, 1), help="as 0/2, for one process of two")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table of what there is")
    parser.add_argument("--data", help="a folder with a folder per class, or a torchvision data set as Flowers102")
    parser.add_argument("--model", default="resnet18", help="for --data, as FineTuner takes it (default resnet18)")
    parser.add_argument("--weights", default="DEFAULT", help="of --model: a name, a file, or none for random ones")
    parser.add_argument("--root", type=Path, default=Path("data"), help="where torchvision's data sets are")
    parser.add_argument("--download", action="store_true", help="fetch the data set if it is not there")
    parser.add_argument("--epochs", type=int, default=10, help="for --data")
    parser.add_argument("--seeds", type=int, default=3, help="for --data")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the rows; the table stands beside it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
