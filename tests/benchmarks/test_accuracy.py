"""The comparison of accuracies: all contenders train on the same number of samples, and the report is right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy import __main__ as command_line
from benchmarks.accuracy.contenders import CONTENDERS, run
from benchmarks.accuracy.table import Difference, Setting, table, verdict
from benchmarks.accuracy.trial import Task, Trial, accuracy, samples_counted
from benchmarks.pairs import PAIRS, Pair, domains
from benchmarks.pairs.backbones import Recipe

CLASSES = 3
TASK = Task("blobs", seed=3, shots=6, epochs=4, batch_size=8)  # 18 images: the last batch is one of two


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, X: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.stem(X)).mean((2, 3)))
        return logits


@dataclass
class Blobs:
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@pytest.fixture
def source() -> nn.Module:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def data() -> Blobs:
    generator = torch.Generator().manual_seed(0)
    tints = torch.randn(CLASSES, 1, 4, 4, generator=generator)

    def some(each: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(CLASSES).repeat(each)
        return tints[y] + 0.2 * torch.randn(len(y), 1, 4, 4, generator=generator), y

    return Blobs(some(TASK.shots), some(20))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore")  # warnings of the peers
@pytest.mark.parametrize("name", CONTENDERS)
def test_each_contender_trains_on_the_same_number_of_samples(name: str, source: nn.Module, data: Blobs) -> None:
    pytest.importorskip({"torch-finetune": "finetune"}.get(CONTENDERS[name].package, CONTENDERS[name].package))
    before = weights(source)
    found = run(name, TASK, source, data, CLASSES)
    assert found["wrong"] == ""
    assert 0 <= found["accuracy"] <= 1
    assert found["seconds"] > 0
    torch.testing.assert_close(weights(source), before, rtol=0, atol=0)


def test_the_same_task_gives_the_same_row(source: nn.Module, data: Blobs) -> None:
    for name in ("finetune", "plain_adam"):
        first, second = (run(name, TASK, source, data, CLASSES) for _ in range(2))
        assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_all_start_from_the_same_network_with_the_same_head(source: nn.Module, data: Blobs) -> None:
    first, second = (Trial(TASK, source, data, CLASSES) for _ in range(2))
    assert first.tuner.model.head.weight.shape == (CLASSES, 8)
    torch.testing.assert_close(weights(first.tuner.model), weights(second.tuner.model), rtol=0, atol=0)
    X = data.test[0]
    expected = first.tuner.model.eval()(X)
    torch.testing.assert_close(first.split().eval()(X), expected)


def test_a_network_with_operations_after_its_head_cannot_be_split(source: nn.Module, data: Blobs) -> None:
    class Scaled(Net):
        def forward(self, X: Tensor) -> Tensor:
            return 2 * super().forward(X)

    with pytest.raises(AssertionError):
        Trial(TASK, Scaled(), data, CLASSES).split()


def test_only_samples_with_accumulated_gradients_count(source: nn.Module, data: Blobs) -> None:
    trial = Trial(TASK, source, data, CLASSES)
    X, y = data.train
    assert trial.samples == 4 * 18
    with samples_counted(trial.head) as seen:
        F.cross_entropy(trial.tuner.model(X[:8]), y[:8]).backward()
        torch.autograd.grad(trial.tuner.model(X[:5]).sum(), list(trial.head.parameters()))
        accuracy(trial.tuner.model, data.test)
        nn.Linear(4, 3)(torch.zeros(5, 4))
    trial.tuner.model(X)
    assert seen == [8]


def test_accuracy_is_over_all_images(data: Blobs) -> None:
    X, y = torch.eye(3).repeat(200, 1), torch.arange(3).repeat(200)
    y[:6] = 0  # two of the first six are right
    assert accuracy(nn.Identity(), (X, y)) == pytest.approx(596 / 600)


# ---------------------------------------------------------------------------------------------------- the table


def row(contender: str, pair: str, seed: int, accuracy: float, **rest: Any) -> dict[str, Any]:
    return {"contender": contender, "pair": pair, "seed": seed, "shots": 10, "epochs": 5, "batch_size": 16,
            "accuracy": accuracy, "wrong": "", "seconds": 1.0, "version": f"{contender} 1",
            **rest}  # fmt: skip


def rows(contender: str, pair: str, accuracies: list[float], **rest: Any) -> list[dict[str, Any]]:
    return [row(contender, pair, seed, value, **rest) for seed, value in enumerate(accuracies)]


def test_a_difference_is_the_mean_of_the_pairs_with_students_interval() -> None:
    difference = Difference.of([0.01, 0.02, 0.03])
    assert difference.mean == pytest.approx(2)
    assert difference.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)  # two degrees of freedom
    assert str(difference) == "+2.0 ± 2.5"
    assert not difference.lost
    assert Difference.of([-0.01, -0.01, -0.01]).lost
    assert not Difference.of([-0.01]).lost  # a single value has no interval


def test_differences_are_taken_seed_by_seed() -> None:
    ours, theirs = rows("finetune", "a", [0.5, 0.9, 0.7]), rows("fastai", "a", [0.4, 0.8, 0.6, 0.1])
    setting = Setting.of([*ours, *reversed(theirs)])
    difference = setting.on_pair("fastai", "a")
    assert difference is not None
    assert difference.mean == pytest.approx(10)
    assert difference.half == pytest.approx(0, abs=1e-9)


def test_over_all_pairs_only_complete_seeds_count_and_pairs_have_equal_weight() -> None:
    setting = Setting.of([
        *rows("finetune", "a", [0.5, 0.5, 0.5]), *rows("fastai", "a", [0.4, 0.4, 0.9]),
        *rows("finetune", "b", [0.5, 0.5]), *rows("fastai", "b", [0.2, 0.4]),
    ])  # fmt: skip
    overall = setting.overall("fastai")
    assert overall is not None
    assert (overall.mean, overall.half) == pytest.approx((15, 63.53102), rel=1e-6)  # from 20 and 10 points
    assert setting.overall("huggingface") is None


def test_the_verdict_names_the_peers_ahead_and_the_lost_pairs() -> None:
    ours = [*rows("finetune", "a", [0.5, 0.5, 0.5]), *rows("finetune", "b", [0.5, 0.5, 0.5])]
    ahead = [*rows("plain_adam", "a", [0.6, 0.61, 0.62]), *rows("plain_adam", "b", [0.4, 0.6, 0.5])]
    behind = [*rows("fastai", "a", [0.1, 0.1, 0.1]), *rows("fastai", "b", [0.51, 0.51, 0.51])]
    own = [*rows("lp_ft", "a", [0.9, 0.9, 0.9]), *rows("lp_ft", "b", [0.9, 0.9, 0.9])]
    assert verdict(Setting.of([*ours, *ahead, *behind, *own])) == (
        "**On average behind plain_adam (-5.5 ± 13.1); the closest is plain_adam, -5.5 ± 13.1. Pairs lost by more "
        "than their interval: b against fastai (-1.0 ± 0.0); a against plain_adam (-11.0 ± 2.5).**"
    )
    assert "at or above all 1 peers" in (said := verdict(Setting.of([*ours, *rows("fastai", "a", [0.1] * 3),
                                                                     *rows("fastai", "b", [0.5] * 3)])))  # fmt: skip
    assert said.endswith("interval: none.**")


def test_the_report_has_means_differences_and_missing_contenders() -> None:
    some = [
        *rows("finetune", "a", [0.5, 0.7]),
        *rows("plain_sgd", "a", [0.75, 0.95], wrong="trained on 3 samples instead of 4"),
        *rows("finetune", "b", [1.0, 1.0]), *rows("plain_sgd", "b", [0.9, 0.9]),
    ]  # fmt: skip
    text = table(some, {"fastai": "No module named 'fastai'"})
    assert "## 10 shots, 5 epochs, batches of 16" in text
    assert "| accuracy, 2 seeds | a | b | all |" in text
    assert "| plain_sgd | 85.0 | 90.0 | 87.5 |" in text
    assert "| plain_sgd | **-25.0 ± 0.0** | +10.0 ± 0.0 | **-7.5 ± 0.0** |" in text
    assert "**Not the same budget**: plain_sgd: trained on 3 samples instead of 4." in text
    assert "Not installed: fastai (No module named 'fastai')." in text
    assert "- `fastai`" not in text


def test_an_interrupted_run_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Recipe(stencils=4, held_out=4, steps=3)
    pair = Pair("small", domains.FIGURES, domains.OTHER_SHAPES, "batchnorm", recipe=quick, folder=tmp_path)
    monkeypatch.setitem(PAIRS, "small", pair)
    out = tmp_path / "accuracy"
    asked = ["--pairs", "small", "--budgets", "2x1", "--contenders", "finetune,plain_sgd", "--out", str(out)]
    command_line.main([*asked, "--seeds", "1"])
    first = capsys.readouterr().out
    command_line.main([*asked, "--seeds", "1"])
    second = capsys.readouterr().out
    assert first.count("Task(") == 2
    assert second == first.splitlines()[-1] + "\n"
    assert len((out / "rows.jsonl").read_text().splitlines()) == 2
    assert "| accuracy, 1 seeds |" in (tmp_path / "accuracy.md").read_text()


@pytest.mark.parametrize(("option", "value"), [("--budgets", "10"), ("--contenders", "keras"), ("--pairs", "nowhere")])
def test_unknown_values_are_rejected(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main([option, value])
    assert value in capsys.readouterr().err
