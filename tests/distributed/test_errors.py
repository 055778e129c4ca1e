"""An error, a signal or a decision of one process reaches all of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune import ArgumentError, FineTuner
from finetune.callbacks import Callback
from finetune.distributed.world import joined
from tests.helpers.worlds import in_processes


def _tuner(seed: int = 0) -> FineTuner:
    torch.manual_seed(seed)
    return FineTuner(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), device="cpu")


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


class _InOne(Callback):
    """Acts in one process, at one update."""

    only_watches = True

    def __init__(self, rank: int, step: int = 3) -> None:
        self.rank, self.step = rank, step

    def on_step_end(self, run):
        if run.world.rank == self.rank and run.epoch == 0 and run.position.step == self.step:
            self.act(run)

    def act(self, run):
        raise ValueError("only here")


class _Stops(_InOne):
    def act(self, run):
        signal.raise_signal(signal.SIGTERM)


class _Ends(_InOne):
    def act(self, run):
        run.end_phase = True


class _Dies(_InOne):
    def act(self, run):
        os._exit(9)


def _fit(callback: Callback, **options: object) -> FineTuner:
    tuner = _tuner()
    tuner.fit(_data(), epochs=5, batch_size=4, progress=False, callbacks=[callback], **options)
    return tuner


def test_an_error_in_one_is_the_error_of_all():
    failed = "finetune.errors.DistributedError: Process 1 failed: ValueError: only here"
    assert in_processes(3, lambda rank: _fit(_InOne(1))) == [failed, "ValueError: only here", failed]


class _Exhausted(nn.Linear):
    """Run out of memory in the second process, on four samples or more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if joined().rank == 1 and len(x) >= 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x)


@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_memory_that_runs_out_in_one_process_ends_all_with_advice(verb: str):
    def work(rank: int) -> object:
        tuner = FineTuner(_Exhausted(6, 3), device="cpu", gradient_accumulation_steps=2)
        getattr(tuner, verb)(_data(), batch_size=2)  # the advice
        return getattr(tuner, verb)(_data(), batch_size=4)

    advice = "CUDA out of memory. Several processes train together, so the batch is not divided. A smaller batch_size"
    first, second = in_processes(2, work)
    assert first.startswith(f"finetune.errors.DistributedError: Process 1 failed: OutOfMemoryError: {advice}")
    assert second.startswith(f"torch.OutOfMemoryError: {advice}")


def test_a_process_that_dies_ends_the_others():
    first, second = in_processes(2, lambda rank: _fit(_Dies(1)))
    assert "DistributedError: Another process of this run has ended" in first
    assert second == "ended with 9"


def test_an_error_that_all_meet_leaves_them_connected():
    def work(rank: int) -> int:
        tuner = _tuner()
        with pytest.raises(ArgumentError, match="epochs"):
            tuner.fit(_data(), epochs=0)
        return len(tuner.fit(_data(), epochs=2, batch_size=4, progress=False))

    assert in_processes(2, work) == [2, 2]


def test_the_end_of_a_phase_in_one_is_the_end_in_all():
    assert in_processes(2, lambda rank: len(_fit(_Ends(1)).history)) == [1, 1]


def test_weights_that_differ_at_the_start_are_those_of_the_first():
    def work(rank: int) -> float:
        tuner = _tuner(seed=rank)
        tuner.fit(_data(), epochs=1, batch_size=4, progress=False)
        return float(sum(parameter.detach().sum() for parameter in tuner.model.parameters()))

    first, second = in_processes(2, work)
    assert first == second


def test_a_signal_in_one_ends_all_at_the_same_update_and_any_number_goes_on(tmp_path: Path):
    stopped = in_processes(2, lambda rank: _fit(_Stops(1), checkpoint_dir=tmp_path))
    assert stopped == ["SystemExit: 143", "SystemExit: 143"]
    whole = _whole(1)

    def resume(size: int) -> list[float]:
        tuner = _tuner()
        tuner.fit(_data(), epochs=5, batch_size=8 // size, progress=False, checkpoint_dir=tmp_path, resume_from="auto")
        return [parameter.detach().sum().item() for parameter in tuner.model.parameters()]

    assert resume(1) == pytest.approx(whole, abs=1e-5)


def _whole(size: int) -> list[float]:
    tuner = _tuner()
    tuner.fit(_data(), epochs=5, batch_size=8 // size, progress=False)
    return [parameter.detach().sum().item() for parameter in tuner.model.parameters()]
