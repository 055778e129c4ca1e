"""Test claims from papers about fine-tuning strategies on the pairs of `benchmarks.pairs`.

    python -m benchmarks.strategies                    # everything
    python -m benchmarks.strategies --part 0/2         # half of the work; run another process with 1/2
    python -m benchmarks.strategies --data dogs --model resnet18
    python -m benchmarks.strategies --data Flowers102 --root data --model resnet18

The last two compare a frozen, a partly frozen and a fine-tuned model on real images: an image folder with one folder
per class, or a torchvision data set, which --download fetches. Finished runs are kept, so an interrupted run resumes.
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
from benchmarks.rows import Row, append_row, part, read_rows
from benchmarks.strategies.plan import Measured, stages
from benchmarks.strategies.real import MissingDataError, report
from benchmarks.strategies.table import table
from benchmarks.strategies.task import run

RESULTS = Path(__file__).parent.parent / "results" / "strategies"
_EVERY = 60  # seconds between lines of progress


def main(arguments: list[str] | None = None) -> int:
    """Run the missing tasks and write the table."""
    options = _parser().parse_args(arguments)
    if options.data:
        return _on_real_data(options)
    torch.set_num_threads(1)
    pairs = list(options.pairs or PAIRS)
    if not options.table:
        measure(pairs, options.part, options.out, options.minutes)
    path = options.out.with_suffix(".md")
    backbones = {f"{PAIRS[name].network} on {PAIRS[name].source.name}": PAIRS[name].source_accuracy for name in pairs}
    path.write_text(table(Measured(read(options.out), pairs), backbones, machine()))
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
    """Run every missing task and save its row: first the tasks of this part, then those left by other processes."""
    for pair in pairs:
        PAIRS[pair].model()  # train all backbones first, outside of the timed runs
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
                print(f"stopped after {minutes:g} minutes")
                return


def read(out: Path) -> dict[str, Row]:
    """Return the saved rows by task."""
    return {row["key"]: row for row in read_rows(out / "rows.jsonl")}


def machine() -> str:
    """Return a description of the machine and the versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pillow", "scikit-learn", "matplotlib"))
    return (
        f"{processor()}, {platform.system()}, {torch.get_num_threads()} thread, Python {platform.python_version()}, "
        f"{packages}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.strategies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", action="append", choices=list(PAIRS), help="run only this pair; repeatable")
    parser.add_argument("--part", type=part, default=(0, 1), help="part of the work, such as 0/2: the first of two")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--table", action="store_true", help="write the table from the saved rows, run nothing")
    parser.add_argument("--data", help="image folder with one folder per class, or a torchvision data set")
    parser.add_argument("--model", default="resnet18", help="model for --data (default: %(default)s)")
    parser.add_argument("--weights", default="DEFAULT", help="weights of --model: a name, a file, or none for random")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of torchvision's data sets")
    parser.add_argument("--download", action="store_true", help="download the data set if it is missing")
    parser.add_argument("--epochs", type=int, default=10, help="epochs with --data (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds with --data (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the rows; the table is next to it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
