"""The coverage benchmark: its checks find broken models, its tables list them, and a run resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.coverage import __main__ as command_line
from benchmarks.coverage import results
from benchmarks.coverage.cheap_weights import CheapWeights
from benchmarks.coverage.checks import CHECKS, check_model
from benchmarks.coverage.family import Built, Family
from benchmarks.coverage.table import table
from benchmarks.coverage.workers import run_jobs


class Net(nn.Module):
    """A small network. Each subclass below breaks one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def features(self, X: Tensor) -> Tensor:
        return self.norm(self.stem(X)).relu().mean((2, 3))

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.features(X))


class MovingBackbone(Net):
    def forward(self, X: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # a training step
            with torch.no_grad():
                self.stem.weight.add_(1)
        return super().forward(X)


class MovingBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1), persistent=False)

    def forward(self, X: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.calls += 1
        return super().forward(X)


class DeadHead(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 10, bias=False)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.features(X) * 0)


class OddShape(Net):
    def forward(self, X: Tensor) -> Tensor:
        return super().forward(X)[:, None].expand(-1, 3, -1)


class Liar(Net):
    @property
    def num_classes(self) -> int:
        return 10

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        pass


class ForgetsOnLoading(Net):
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return None


class OwnSavingIsBroken(Net):
    def save_pretrained(self, folder: Path) -> None:
        pass

    @classmethod
    def from_pretrained(cls, folder: Path) -> OwnSavingIsBroken:
        return cls()


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_sound_model_passes_every_check(tmp_path: Path) -> None:
    found = check_model(Net(), images(), tmp_path)
    assert found.causes == {}
    assert found.checks == {**dict.fromkeys(CHECKS, True), "own_saving": None}  # the model has no save_pretrained
    assert found.stages >= 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (MovingBackbone, "frozen", "stem.weight"),
        (MovingBuffer, "frozen", "calls"),
        (DeadHead, "frozen", "head did not move"),
        (OddShape, "shape", "[2, 3, 7]"),
        (Liar, "truth", "num_classes says 10"),
        (ForgetsOnLoading, "loaded", "differ after loading"),
        (OwnSavingIsBroken, "own_saving", "differ"),
    ],
)
def test_broken_models_are_found(broken: type[Net], check: str, said: str, tmp_path: Path) -> None:
    found = check_model(broken(), images(), tmp_path)
    assert found.checks[check] is False
    assert said in found.causes[check]


def test_a_model_without_a_head_is_reported_as_headless(tmp_path: Path) -> None:
    found = check_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), images(), tmp_path)
    assert found.headless
    assert found.checks == {**dict.fromkeys(CHECKS), "head": False}


def test_incomplete_stages_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks.coverage import checks

    whole = checks.stages
    monkeypatch.setattr(checks, "stages", lambda model, heads: whole(model, heads)[1:])
    assert "in no stage" in check_model(Net(), images(), tmp_path).causes["stages"]


def test_cheap_weights_keep_standard_deviations_and_small_tensors() -> None:
    with CheapWeights():
        large, small = torch.empty(200, 100), torch.empty(5)
        nn.init.trunc_normal_(large, std=0.02)
        nn.init.constant_(small, 3.0)
        linear = nn.Linear(100, 100)
        moved = nn.init.normal_(torch.empty(100, 100), mean=1.0, std=0.5)
    assert large.std() == pytest.approx(0.02, rel=0.2)
    assert small.tolist() == [3.0] * 5
    assert linear.weight.std().item() == pytest.approx(0.1, rel=0.2)  # 1 / sqrt(fan in)
    assert (moved.mean().item(), moved.std().item()) == (pytest.approx(1, abs=0.05), pytest.approx(0.5, rel=0.2))


def row(name: str, status: str = "ok", **rest: Any) -> dict[str, Any]:
    return {"family": "test", "name": name, "status": status, "checks": {}, "causes": {}, "parameters": 1, **rest}


def test_the_table_counts_and_lists_the_failures() -> None:
    rows = {
        "a": row("a", checks=dict.fromkeys(CHECKS, True), versions="torch 9", note="built with depth=2"),
        "b": row("b", "miss", checks={"head": True, "shape": False}, causes={"shape": "of 3"}),
        "c": row("c", "no classifier", checks={"head": False}),
        "d": {"family": "test", "name": "d", "status": "not checked", "causes": {"build": "needs natten"}},
    }
    text = table("things", ["a", "b", "c", "d", "e"], rows)
    assert "**2 of 5 pass.** 1 not run yet." in text
    assert "| head replaced | 2 | 0 | 1 |" in text
    assert "- `b`: output shape right: of 3" in text
    assert "- `d`: building: needs natten" in text
    assert "built with depth=2" in text
    assert "torch 9" in text


def test_the_last_row_of_each_architecture_is_read_and_cut_off_lines_are_skipped(tmp_path: Path) -> None:
    for one in (row("a", "miss"), row("b"), row("a")):
        results.append(tmp_path, one)
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('{"name": "c", "sta')
    assert {name: found["status"] for name, found in results.read(tmp_path, "test").items()} == {"a": "ok", "b": "ok"}


@pytest.fixture
def small_family(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the families by one of two models, checked in this process. Return the names of checked models."""
    checked: list[str] = []

    def checked_here(jobs: Any, workers: int, limit: float) -> Any:
        for family, name in jobs:
            checked.append(name)
            yield {**row(name, "miss" if name == "bad" else "ok"), "family": family}

    family = Family("two", (), lambda: ["good", "bad"], lambda name: Built(Net(), images()), sample=("good",))
    monkeypatch.setattr(command_line, "load_family", lambda name: family)
    monkeypatch.setattr(command_line, "run_jobs", checked_here)
    return checked


def test_an_interrupted_run_resumes(small_family: list[str], tmp_path: Path) -> None:
    run = ["--family", "video", "--out", str(tmp_path / "coverage")]
    command_line.main([*run, "--only", "g*"])
    assert small_family == ["good"]
    command_line.main(run)
    assert small_family == ["good", "bad"]
    command_line.main(run)
    assert small_family == ["good", "bad"]
    command_line.main([*run, "--retry-failed"])
    assert small_family == ["good", "bad", "bad"]
    assert "1 of 2" in (tmp_path / "coverage-video.md").read_text()
    assert len((tmp_path / "coverage" / "video.jsonl").read_text().splitlines()) == 3


def test_the_sample_returns_an_exit_code_and_writes_nothing(small_family: list[str], tmp_path: Path) -> None:
    out = tmp_path / "coverage"
    assert command_line.main(["--family", "video", "--sample", "--out", str(out)]) == 0
    assert small_family == ["good"]
    assert not out.exists()


@pytest.mark.slow
def test_a_worker_returns_a_row_also_for_a_model_it_cannot_build() -> None:
    jobs = [("torchvision", "squeezenet1_1"), ("torchvision", "no_such_model")]
    good, bad = run_jobs(jobs, workers=1, limit=120)
    assert (good["status"], good["causes"]) == ("ok", {})
    assert json.dumps(good)
    assert bad["status"] == "not checked"
    assert "no_such_model" in bad["causes"]["build"]


def test_a_worker_that_exceeds_the_time_limit_is_killed() -> None:
    (found,) = run_jobs([("torchvision", "squeezenet1_1")], workers=1, limit=0.0)
    assert found["status"] == "not checked"
    assert "time limit" in found["causes"]["build"]
