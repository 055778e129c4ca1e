"""The comparison with peers: deviations from the task are found, a run resumes, and the ratios are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers import __main__ as command_line
from benchmarks.peers.one_run import run
from benchmarks.peers.table import table
from benchmarks.peers.verifier import Verifier
from benchmarks.peers.workload import PARTS, RATE, Task, Workload

TINY = {"samples": 12, "epochs": 2, "size": 32, "batch_size": 8}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("peer", ["finetune", "hand", "hand_tricks"])
def test_our_own_peers_train_as_intended(peer: str, part: str) -> None:
    row = run(peer, Task(part, **TINY))
    assert row["wrong"] == ""
    assert row["updates"] == 4
    assert row["seconds"] > 0


def test_hand_tricks_equals_the_plain_loop_except_for_the_order_of_samples() -> None:
    """With a single batch per epoch, the order has no effect, and both agree up to rounding."""
    one_batch = {**TINY, "samples": 8}
    plain, tricks = (run(peer, Task("last stage", **one_batch))["loss"] for peer in ("hand", "hand_tricks"))
    assert plain == pytest.approx(tricks, rel=0.02)


@pytest.mark.parametrize(
    ("part", "updates", "said"),
    [("full", 4, "frozen tensors moved"), ("head", 3, "3 updates instead of 4"), ("", 4, "tensors did not move")],
)
def test_deviations_from_the_task_are_found(part: str, updates: int, said: str) -> None:
    workload = Workload(Task("last stage", **TINY))
    verifier = Verifier(workload)
    moved = [p for name, p in workload.network.named_parameters() if part and name.startswith(PARTS[part])]
    with torch.no_grad():
        for parameter in moved:
            parameter.add_(RATE)
    assert said in verifier.findings(updates)["wrong"]


def row(peer: str, seconds: float, number: int = 0, **rest: Any) -> dict[str, Any]:
    task = Task("head", **TINY).as_row()
    return {"peer": peer, **task, "folder": False, "threads": 1, "round": number, "seconds": seconds, "loss": 1.0,
            "accuracy": 0.9, "wrong": "", "version": f"{peer} 1", **rest}  # fmt: skip


def test_the_table_has_medians_ratios_and_deviations() -> None:
    rows = [row("finetune", seconds, number) for number, seconds in enumerate((1.0, 2.0, 1.0))]
    rows += [row("hand", seconds, number) for number, seconds in enumerate((20.0, 30.0, 22.0))]
    rows += [row("hand_tricks", 0.8), row("fastai", 40.0, accuracy=0.3), row("skorch", 50.0, wrong="2 updates of 4")]
    rows += [{"peer": "keras", "missing": "No module named 'keras'", "round": 0}]
    text = table(rows)
    assert "**22.00 times as fast as the fastest peer, hand.**" in text
    assert "overhead over the same optimizations by hand: +25.0%" in text
    assert "| hand | 22.00 | 20.00 to 30.00 | 3 | 20.00 | 15.00 to 22.00 | 1.000 | 0.90 | verified |" in text
    assert "learned less than the hand-written loop" in text
    assert "| 2 updates of 4 |" in text
    assert "keras (No module named 'keras')" in text


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    timed: list[tuple[str, int]] = []

    def run_here(peer: str, tasks: list[Task], threads: int) -> list[dict[str, Any]]:
        timed.append((peer, len(tasks)))
        return [row(peer, 1.0, **task.as_row()) for task in tasks]

    sizes = ["--samples", "12", "--epochs", "2", "--size", "32", "--batch", "8", "--out", str(tmp_path / "peers")]
    command_line.main([*sizes, "--rounds", "1", "--peers", "finetune,hand", "--work", "head,last_stage"], run_here)
    assert timed == [("finetune", 2), ("hand", 2)]
    command_line.main([*sizes, "--rounds", "2", "--peers", "finetune,hand", "--work", "head,last_stage,full"], run_here)
    assert timed[2:] == [("finetune", 1), ("hand", 1), ("hand", 3), ("finetune", 3)]
    assert "## full" in (tmp_path / "peers.md").read_text()


def test_a_folder_has_the_same_images_as_memory(tmp_path: Path) -> None:
    from benchmarks.peers.workload import write_jpegs

    write_jpegs(tmp_path, 12, 32)
    inside, outside = (
        Workload(Task("head", **TINY, folder=str(tmp_path))).dataset(),
        Workload(Task("head", **TINY)).dataset(),
    )
    assert len(inside) == len(outside) == 12  # type: ignore[arg-type]
    labels = [int(label) for _, label in inside]
    assert sorted(labels) == sorted(int(label) for _, label in outside)
