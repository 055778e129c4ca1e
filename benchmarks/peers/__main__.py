"""Time every peer on every workload, round by round; see `benchmarks/peers/__init__.py`.

An interrupted run resumes: rows saved for the same settings are not timed again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.one_run import PEERS
from benchmarks.peers.table import write_table
from benchmarks.peers.workload import PARTS, Task, write_jpegs
from benchmarks.rows import Row, append_row, read_rows

# Default numbers of images, for which a plain loop takes about the same time whichever part is trainable.
_SAMPLES = {"head": 192, "last stage": 128, "full": 48}


RunTasks = Callable[[str, Sequence[Task], int], list[Row]]


def run_in_process(peer: str, tasks: Sequence[Task], threads: int) -> list[Row]:
    """Run the tasks of a peer in a new process and return their rows."""
    texts = [json.dumps(task.as_row()) for task in tasks]
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.one_run", peer, *texts],
        env={**os.environ, **counts, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        check=False,  # rows printed before a failure count
        stdout=subprocess.PIPE,
        text=True,
    )
    rows: list[Row] = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"peer"')]
    if ended.returncode or len(rows) < len(tasks):
        print(f"{peer} exited with code {ended.returncode} after {len(rows)} of {len(tasks)} tasks", file=sys.stderr)
    return rows


def main(arguments: list[str] | None = None, run: RunTasks = run_in_process) -> int:
    """Time the missing runs and write the table.

    Args:
        arguments: Command line, by default that of the process.
        run: Function that runs the tasks of a peer with a number of threads, by default in a new process.

    Returns:
        1 if a peer trained differently than intended, else 0.
    """
    options = _parser().parse_args(arguments)
    rows = read_rows(options.out / "rows.jsonl")
    with tempfile.TemporaryDirectory() as scratch:
        tasks = [_task(part, options, Path(scratch)) for part in options.work]
        for number in range(options.rounds):
            peers = options.peers if number % 2 == 0 else options.peers[::-1]  # alternate the order
            for peer in peers:
                done = [row for row in rows if (row["peer"], row["round"]) == (peer, number)]
                waiting = [task for task in tasks if not any(_is_of(row, task) for row in done)]
                for row in run(peer, waiting, options.threads) if waiting else []:
                    rows.append({**row, "folder": bool(row.get("folder")), "round": number, "threads": options.threads})
                    append_row(options.out / "rows.jsonl", rows[-1])
                    print(_progress(rows[-1]), flush=True)
    wanted = [row for row in rows if "missing" in row or any(_is_of(row, task) for task in tasks)]
    path = options.out.with_suffix(".md")
    write_table(path, wanted)
    print(f"wrote {path}")
    return int(any(row.get("wrong") for row in wanted))


def _task(part: str, options: argparse.Namespace, scratch: Path) -> Task:
    samples = options.samples or _SAMPLES[part]
    folder = ""
    if options.folder:
        folder = str(scratch / f"{samples}")
        write_jpegs(Path(folder), samples, options.size)
    return Task(part, samples, options.epochs, options.size, options.batch, options.precision, options.device, folder)


def _is_of(row: Row, task: Task) -> bool:
    """Return whether a row belongs to a task, wherever its folder was."""
    wanted = {**task.as_row(), "folder": bool(task.folder)}
    return "missing" not in row and all(row[name] == value for name, value in wanted.items())


def _progress(row: Row) -> str:
    if "missing" in row:
        return f"round {row['round'] + 1} {row['peer']}: not installed, {row['missing']}"
    return f"round {row['round'] + 1} {row['peer']} {row['part']}: {row['seconds']:.2f} s {row['wrong']}"


def _parser() -> argparse.ArgumentParser:
    def names(known: Sequence[str]) -> Any:
        def parsed(text: str) -> list[str]:
            given = [name.strip().replace("_", " ") if " " in "".join(known) else name.strip()
                     for name in text.split(",")]  # fmt: skip
            if unknown := [name for name in given if name not in known]:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
            return given

        return parsed

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=names(list(PARTS)), default=list(PARTS), help="trainable parts: head,last_stage,full"
    )
    parser.add_argument("--peers", type=names(list(PEERS)), default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--samples", type=int, help=f"number of images (default: {_SAMPLES})")
    parser.add_argument("--epochs", type=int, default=10, help="epochs per run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs per peer and part (default: %(default)s)")
    parser.add_argument("--size", type=int, default=160, help="image size in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="batch size (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--folder", action="store_true", help="read images from a folder of JPEGs, not from memory")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers"), help="folder for the rows")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
