"""Fuzz the readers of files that may come from strangers.

    python -m tests.fuzz picture --minutes 60

Findings are written to a folder, each with its traceback and the file that led to it; `--replay FILE` reads one again.
A process that ends before its time is a finding too, and another goes on. Install atheris to have the fuzzing guided by
the branches that files reach.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("checkpoint", "table", "picture")
PACKAGES = ["finetune", "PIL", "wave"]


def main() -> None:
    """Run a campaign and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("reader", choices=NAMES)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where to write the findings; fuzz-READER")
    parser.add_argument("--replay", type=Path, default=None, help="read one file, and print how that ends")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = (given.folder or Path(f"fuzz-{given.reader}")).resolve()
    if given.replay is not None:
        _replay(given.reader, given.replay, folder)
    elif given.within:
        with _instrumented():
            from tests.fuzz import campaign
        campaign.run(given.reader, folder, 60 * given.minutes, given.seed)
    else:
        _supervise(given.reader, folder, 60 * given.minutes, given.seed)


def _instrumented() -> Any:
    """Return a context in which imported modules report their branches, if atheris is installed."""
    try:
        return import_module("atheris").instrument_imports(include=PACKAGES)
    except ImportError:
        return nullcontext()


def _replay(name: str, file: Path, folder: Path) -> None:
    from tests.fuzz import campaign, readers

    print(campaign.Campaign(readers.READERS[name], folder).try_one(file.read_bytes()))


def _supervise(name: str, folder: Path, seconds: float, seed: int) -> None:
    """Run processes until the time is over, one after the other if they end early, and print the figures."""
    end = time.monotonic() + seconds
    figures: Counter[str] = Counter()
    ended = 0
    folder.mkdir(parents=True, exist_ok=True)
    while (left := end - time.monotonic()) > 1:
        own = folder / f"process-{ended}"
        own.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.fuzz", name, "--within", "--folder", str(own)]
        command += ["--minutes", str(left / 60), "--seed", str(seed + ended + 1)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (own / "log.txt").open("wb") as log:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False).returncode
        with suppress(OSError, ValueError):
            for key, value in json.loads((own / "figures.json").read_text()).items():
                figures[key] = max(figures[key], value) if "most" in key else figures[key] + value
        ended += 1
        if code and end - time.monotonic() > 1:
            print(f"A process ended with code {code}: {own / 'current'}", flush=True)
            (own / "current").rename(own / "found-ended")
    found = sorted(folder.glob("process-*/found-*"))
    logs = "".join(path.read_text("utf-8", "replace") for path in folder.glob("process-*/log.txt"))
    seen = re.findall(r"cov: (\d+) ft: (\d+)", logs)
    print(json.dumps({"reader": name, "minutes": round(seconds / 60), **figures, "processes": ended}))
    print(f"branches and features: {max((tuple(map(int, pair)) for pair in seen), default='not measured')}")
    print(f"findings: {len([path for path in found if path.suffix != '.txt'])}")
    for path in found:
        print(f"  {path}: {path.read_text(errors='replace').partition(chr(10))[0]}" if path.suffix else f"  {path}")


if __name__ == "__main__":
    main()
