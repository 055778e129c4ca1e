"""`fit` over a frozen prefix that is computed once: the same results as without, and whole runs where it must be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from finetune import FineTuner, Phase
from finetune.callbacks import Callback
from finetune.errors import ArgumentError
from finetune.features.cached import Unread
from finetune.features.prefix import DivergedError


class Net(nn.Module):
    """Convolutions with batch norms, a dropout, a skip around the last block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block1 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block2 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.2))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.stem(x))
        x = (x + self.block2(x)).relu_()
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


X = torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 3

FROZEN = {
    "all but the head": ["stem", "block1", "block2"],
    "all but the last block": ["stem", "block1"],
    "in the middle of a block": ["stem", "block1", "block2.0"],
    "nothing": [],
    "not the stem": ["block1"],
}


def tuned(frozen: Any = ("stem", "block1"), cls: type[FineTuner] = FineTuner, **settings: Any) -> FineTuner:
    torch.manual_seed(0)
    tuner = cls(Net(), device="cpu", **settings)
    return tuner.freeze(list(frozen)) if frozen else tuner


VAL = (X[:20], Y[:20])


def fitted(cache: Any, tuner: FineTuner, data: Any = (X, Y), val: Any = VAL, **arguments: Any) -> FineTuner:
    arguments = {"epochs": 3, "batch_size": 8, "lr": 1e-2, **arguments}
    tuner.fit(data, val, cache=cache, progress=False, **arguments)
    return tuner


def assert_equal(one: FineTuner, other: FineTuner) -> None:
    theirs = other.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in one.model.state_dict().items())
    kept = [{k: v for k, v in row.items() if "second" not in k} for row in one.history]
    assert kept == [{k: v for k, v in row.items() if "second" not in k} for row in other.history]


@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 3}, {"precision": "bf16"}], ids=str)
def test_cached_training_equals_uncached_training(frozen: list[str], settings: dict[str, Any]) -> None:
    assert_equal(fitted(False, tuned(frozen, **settings)), fitted("memory", tuned(frozen, **settings)))


def test_each_phase_is_cut_anew() -> None:
    strategy = [Phase("fc", 2, name="probe"), Phase(["block2", "fc"], 2, name="last"), Phase("*", 1, name="all")]
    assert_equal(fitted(False, tuned(), strategy=strategy), fitted("memory", tuned(), strategy=strategy))


def test_a_run_resumes_over_a_cache(tmp_path: Path) -> None:
    whole = fitted("memory", tuned(), epochs=4)
    part = tuned()

    class StopError(Exception):
        pass

    class Halt(Callback):
        def on_step_end(self, run: Any) -> None:
            if run.epoch == 1 and run.position.window == 3:
                run.save(tmp_path / "run.safetensors")
                raise StopError

    with pytest.raises(StopError):
        fitted("memory", part, epochs=4, callbacks=[Halt()])
    assert_equal(whole, fitted("memory", tuned(), epochs=4, resume_from=tmp_path / "run.safetensors"))


# ---------------------------------------------------------------- a step of the user's own


class Mixing(FineTuner):
    """Mixes its pictures by hand before the model sees them."""

    def training_step(self, batch: Any) -> Tensor:
        pictures, targets = batch
        mixed = 0.7 * pictures + 0.3 * pictures.flip(0)
        logits = self.model(mixed)
        return 0.7 * self.loss(logits, targets) + 0.3 * self.loss(logits, targets.flip(0))


class InPlace(FineTuner):
    """Changes its pictures where they lie."""

    def training_step(self, batch: Any) -> Tensor:
        pictures, targets = batch
        return self.loss(self.model(pictures.mul_(-1)), targets)


class TwoViews(FineTuner):
    """Looks at the pictures and at their mirror images."""

    def training_step(self, batch: Any) -> Tensor:
        pictures, targets = batch
        return self.loss(self.model(pictures), targets) + self.loss(self.model(pictures.flip(-1)), targets)


class HandsOn(FineTuner):
    """Has a loss of its own over the untouched batch."""

    def training_step(self, batch: Any) -> Tensor:
        pictures, targets = batch
        return nn.functional.cross_entropy(self.model(pictures), targets, label_smoothing=0.1)


@pytest.mark.parametrize("cls", [Mixing, InPlace, TwoViews, HandsOn])
def test_trap_43_stored_activations_serve_the_untouched_batch_alone(cls: type[FineTuner]) -> None:
    data = TensorDataset(X.clone(), Y)
    plain, cached = fitted(False, tuned(cls=cls), data), fitted("memory", tuned(cls=cls), TensorDataset(X.clone(), Y))
    assert_equal(plain, cached)


def test_the_librarys_own_step_is_served_without_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first epoch nothing of a picture is read, and no other result comes of it."""
    from finetune.data.base import Arrays

    gathered: list[int] = []
    gather = Arrays.gather

    def counted(self: Arrays, indices: Tensor) -> Any:
        gathered.append(len(indices))
        return gather(self, indices)

    monkeypatch.setattr(Arrays, "gather", counted)
    fitted("memory", tuned(), val=False, epochs=5)
    assert sum(gathered) <= 50 + 8 + 2  # one epoch, the batch that the prefix is cut on, and the look at the data


def test_inputs_that_were_left_out_are_an_error_to_read() -> None:
    unread = Unread((4, 3, 16, 16), torch.zeros(0, 3, 16, 16))
    assert (len(unread), unread.shape[1:], unread.dtype) == (4, (3, 16, 16), torch.float32)
    with pytest.raises(DivergedError, match="cache=False"):
        unread + 1


def test_a_callback_that_changes_a_frozen_weight_ends_the_cache() -> None:
    class Thaw(Callback):
        def on_epoch_end(self, run: Any) -> None:
            with torch.no_grad():
                run.model.stem[0].weight.add_(0.01)

    assert_equal(fitted(False, tuned(), callbacks=[Thaw()]), fitted("memory", tuned(), callbacks=[Thaw()]))


# ---------------------------------------------------------------- what is said, and what declines


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for index in range(12):
            values = torch.randint(256, (20, 20, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(values.numpy()).save(tmp_path / name / f"{index}.png")
    return tmp_path


def said(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(record.getMessage() for record in caplog.records if record.getMessage().startswith("cache"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"augment": False}, "is computed once and kept in memory"),
        ({"augment_views": 0}, "validation data only, as the augmentation makes new"),
    ],
)
def test_pictures(pictures: Path, arguments: Any, expected: str, caplog: pytest.LogCaptureFixture) -> None:
    runs = []
    for cache in (False, "memory"):
        tuner = tuned(preprocessing={"crop_size": 16, "resize_size": 18}).replace_head(2)
        with caplog.at_level(logging.INFO, "finetune"):
            runs.append(fitted(cache, tuner, pictures, None, **arguments))
    assert expected in said(caplog)
    assert_equal(*runs)


@pytest.mark.parametrize(
    ("frozen", "data", "cache", "expected"),
    [
        ([], (X, Y), "auto", "none, as "),
        (["stem"], TensorDataset(X, Y, Y), "auto", "a MapDataset may give another sample"),
        (["stem", "block1"], (X[:10], Y[:10]), "auto", "too few samples and epochs"),
    ],
)
def test_what_declines_is_said(
    frozen: list[str], data: Any, cache: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(cache, tuned(frozen), data, False)
    assert expected in said(caplog)


def test_without_a_cache_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(False, tuned())
    assert said(caplog) == ""


def test_too_much_for_memory_is_not_kept(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.features.planner.free_memory", lambda device: 1000)
    with caplog.at_level(logging.INFO, "finetune"):
        fitted("memory", tuned())
    assert "more than half of the 1 kB that are free" in said(caplog)


def test_an_unknown_kind_of_cache_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="Expected cache to be 'auto', 'memory' or False"):
        fitted("ram", tuned())
