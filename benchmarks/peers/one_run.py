"""Run tasks of one peer in this process: `python -m benchmarks.peers.one_run PEER TASK...`, with tasks as JSON."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.peers.verifier import Verifier, counted_updates
from benchmarks.peers.workload import Task, Workload

PEERS = {
    "finetune": "finetune_",
    "hand": "hand",
    "hand_tricks": "hand_tricks",
    "fastai": "fastai",
    "lightning": "lightning",
    "huggingface": "huggingface",
    "keras": "keras",
    "poutyne": "poutyne",
    "skorch": "skorch",
}


def run(peer: str, task: Task) -> dict[str, Any]:
    """Run a task after a warm-up, and return its row: the time and the findings of the verifier."""
    threads = torch.get_num_threads()
    module = import_module(f"benchmarks.peers.{PEERS[peer]}")
    module.train(Workload(replace(task, samples=min(task.samples, 2 * task.batch_size), epochs=1, folder="")))
    workload = Workload(task)
    verifier = Verifier(workload)
    with counted_updates() as count:
        seconds = module.train(workload)
    findings = verifier.findings(count[0] if workload.updates is None else workload.updates)
    if torch.get_num_threads() != threads:
        findings["wrong"] += f"; changed the number of threads to {torch.get_num_threads()}"
    return {"peer": peer, **task.as_row(), "seconds": round(seconds, 4), **findings, "version": _version(module)}


def _version(module: Any) -> str:
    try:
        return f"{module.PACKAGE} {version(module.PACKAGE)}"
    except PackageNotFoundError:
        return ""


def main(peer: str, tasks: list[str]) -> None:
    """Run the tasks and print the row of each as JSON."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for text in tasks:
        try:
            row = run(peer, Task(**json.loads(text)))
        except ImportError as error:
            row = {"peer": peer, "missing": str(error)}
        print("\n" + json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
