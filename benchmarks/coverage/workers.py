"""Worker processes that check architectures one after another, with a time limit for each.

An architecture that crashes its process or exceeds the limit fails alone: the next one gets a new process.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.rows import Row

Job = tuple[str, str]  # family and architecture

_JOBS_PER_PROCESS = 100  # restart processes now and then, because the caches of libraries add up


def run_jobs(
    jobs: Iterable[Job], workers: int, limit: float, check: Callable[[str, str], Row] | None = None
) -> Iterator[Row]:
    """Run the jobs in worker processes and yield the row of each as it finishes.

    Args:
        jobs: Architectures to check.
        workers: Number of processes.
        limit: Time limit per architecture in seconds. A job that exceeds it is killed and fails.
        check: Function that returns the row of a job. By default, it runs the checks of the coverage benchmark.
    """
    waiting = deque(jobs)
    pool = [_Worker(check or _row) for _ in range(min(workers, len(waiting)))]
    try:
        while waiting or any(worker.job for worker in pool):
            for worker in pool:
                if worker.job is None and waiting:
                    worker.start(waiting.popleft(), limit)
            wait([worker.connection for worker in pool if worker.job], timeout=1.0)
            for worker in pool:
                row = worker.result()
                if row is not None:
                    yield row
    finally:
        for worker in pool:
            worker.end()


@dataclass
class _Worker:
    """A process, its current job, and the job's deadline."""

    check: Callable[[str, str], Row]
    job: Job | None = None
    done: int = 0
    deadline: float = 0.0
    process: Any = None
    connection: Connection = field(init=False)

    def start(self, job: Job, limit: float) -> None:
        if self.process is None or self.done >= _JOBS_PER_PROCESS:
            self.end()
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.check), daemon=True)
            self.process.start()
            theirs.close()
            self.done = 0
        self.job, self.deadline = job, time.monotonic() + limit
        self.connection.send(job)

    def result(self) -> Row | None:
        """Return the row of the job if it has finished, crashed or timed out, else None."""
        if self.job is None:
            return None
        family, name = self.job
        row: Row | None = None
        try:
            if self.connection.poll():
                row = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            row = failed(family, name, f"the process exited with code {self.process.exitcode}")
            self.end()
        if row is None and time.monotonic() > self.deadline:
            row = failed(family, name, "not finished within the time limit")
            self.end()
        if row is not None:
            self.job, self.done = None, self.done + 1
        return row

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def _serve(connection: Connection, check: Callable[[str, str], Row]) -> None:
    """Check the jobs that arrive over the connection, until the process is killed."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    warnings.simplefilter("ignore")  # warnings of the libraries
    import torch

    torch.set_num_threads(1)
    while True:
        family, name = connection.recv()
        connection.send(check(family, name))


def _row(family_name: str, name: str) -> Row:
    from benchmarks.coverage.cheap_weights import CheapWeights
    from benchmarks.coverage.checks import check_model
    from benchmarks.coverage.family import load_family

    start = time.perf_counter()
    try:
        family = load_family(family_name)
        with CheapWeights():
            built = family.build(name)
    except Exception as error:
        return failed(family_name, name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    build_seconds = time.perf_counter() - start
    try:
        found = check_model(built.model, built.inputs)
    except Exception:  # an error of the checks themselves
        return failed(family_name, name, " ".join(traceback.format_exc().split())[-400:])
    headless = found.headless and name in family.headless
    status = "no classifier" if headless else "ok" if False not in found.checks.values() else "miss"
    return {
        "family": family_name,
        "name": name,
        "status": status,
        "checks": found.checks,
        "causes": found.causes,
        "parameters": found.parameters,
        "stages": found.stages,
        "seconds": round(time.perf_counter() - start, 2),
        "parts": {"build": round(build_seconds, 2), **found.seconds},
        "told": found.told,
        "note": built.note,
        "versions": versions(family.packages),
    }


def failed(family: str, name: str, cause: str) -> Row:
    """Return the row of an architecture that could not be checked."""
    return {"family": family, "name": name, "status": "not checked", "causes": {"build": cause}}


def versions(packages: tuple[str, ...]) -> str:
    """Return the versions of torch and `packages` as text."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("torch", *packages):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
