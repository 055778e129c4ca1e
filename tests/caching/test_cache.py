"""`fit` with a cached prefix: the same results as without, and whole passes where needed."""

from __future__ import annotations

import copy
import errno
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from finetune import FineTuner, Phase
from finetune.caching.prefix.prefix import Prefix
from finetune.callbacks import Callback
from finetune.errors import ArgumentError
from tests.helpers.system import report_free_memory


class Net(nn.Module):
    """Convolutions with batch norms, a dropout and a residual connection."""

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
    tuner = cls(Net(), **{"device": "cpu", **settings})
    return tuner.freeze(list(frozen)) if frozen else tuner


VAL = (X[30:], Y[30:])


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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("cache", ["auto", "memory", "disk", "folder"])
def test_cached_training_on_a_gpu(cache: str, precision: str, accelerator: torch.device, tmp_path: Path) -> None:
    settings = {"device": accelerator, "precision": precision}
    where = tmp_path / "cache" if cache == "folder" else cache
    plain, cached = (fitted(kept, tuned(**settings)).model.state_dict() for kept in (False, where))
    torch.testing.assert_close(cached, plain, rtol=1e-3, atol=1e-4)


def test_each_phase_is_cut_anew() -> None:
    strategy = [Phase("fc", 2, name="probe"), Phase(["block2", "fc"], 2, name="last"), Phase("*", 1, name="all")]
    assert_equal(fitted(False, tuned(), strategy=strategy), fitted("memory", tuned(), strategy=strategy))


def test_a_run_resumes_over_a_cache(tmp_path: Path) -> None:
    whole = fitted("memory", tuned(), epochs=4)
    part = tuned()

    class StopError(Exception):
        pass

    class Halt(Callback):
        only_watches = True

        def on_step_end(self, run: Any) -> None:
            if run.epoch == 1 and run.position.window == 3:
                run.save(tmp_path / "run.safetensors")
                raise StopError

    with pytest.raises(StopError):
        fitted("memory", part, epochs=4, callbacks=[Halt()])
    assert_equal(whole, fitted("memory", tuned(), epochs=4, resume_from=tmp_path / "run.safetensors"))


# ---------------------------------------------------------------- custom steps


class Mixing(FineTuner):
    """Mixes images before the forward pass."""

    def training_step(self, batch: Any) -> Tensor:
        pictures, targets = batch
        mixed = 0.7 * pictures + 0.3 * pictures.flip(0)
        logits = self.model(mixed)
        return 0.7 * self.loss(logits, targets) + 0.3 * self.loss(logits, targets.flip(0))


class InPlace(FineTuner):
    """Changes images in place."""

    def training_step(self, batch: Any) -> Tensor:
        pictures, targets = batch
        return self.loss(self.model(pictures.mul_(-1)), targets)


class TwoViews(FineTuner):
    """Calls the model on images and on their mirror images."""

    def training_step(self, batch: Any) -> Tensor:
        pictures, targets = batch
        return self.loss(self.model(pictures), targets) + self.loss(self.model(pictures.flip(-1)), targets)


class HandsOn(FineTuner):
    """Computes its own loss on the unmodified batch."""

    def training_step(self, batch: Any) -> Tensor:
        pictures, targets = batch
        return nn.functional.cross_entropy(self.model(pictures), targets, label_smoothing=0.1)


@pytest.mark.parametrize("cls", [Mixing, InPlace, TwoViews, HandsOn])
def test_trap_43_only_the_unmodified_batch_is_served(cls: type[FineTuner]) -> None:
    data = TensorDataset(X.clone(), Y)
    plain, cached = fitted(False, tuned(cls=cls), data), fitted("memory", tuned(cls=cls), TensorDataset(X.clone(), Y))
    assert_equal(plain, cached)


def sizes_given_to(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the length of the argument of each call of a method."""
    sizes: list[int] = []
    method = getattr(owner, name)

    def noted(self: Any, given: Any) -> Any:
        sizes.append(len(given))
        return method(self, given)

    monkeypatch.setattr(owner, name, noted)
    return sizes


@pytest.mark.parametrize(("cls", "batches"), [(Mixing, 1), (HandsOn, 6)])  # whole batches; the first is timed
def test_a_step_on_modified_inputs_only_does_not_compute_the_prefix(
    cls: type[FineTuner], batches: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    computed = sizes_given_to(Prefix, "compute", monkeypatch)
    with caplog.at_level(logging.INFO, "finetune"):
        fitted("memory", tuned(cls=cls), val=False)
    assert computed.count(8) == batches
    assert said(caplog).count("unused last epoch") == (cls is Mixing)


def test_the_default_step_is_served_without_loading_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first epoch no image is read."""
    from finetune.data.sources.arrays import Arrays

    gathered = sizes_given_to(Arrays, "gather", monkeypatch)
    fitted("memory", tuned(), val=False, epochs=5)
    assert sum(gathered) <= 50 + 8 + 2  # one epoch, the batch for cutting the prefix, and the audit


def test_a_callback_that_changes_a_frozen_weight_ends_the_cache() -> None:
    class Thaw(Callback):
        def on_epoch_end(self, run: Any) -> None:
            with torch.no_grad():
                run.model.stem[0].weight.add_(0.01)

    assert_equal(fitted(False, tuned(), callbacks=[Thaw()]), fitted("memory", tuned(), callbacks=[Thaw()]))


# ---------------------------------------------------------------- messages and reasons


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
        ({"augment_views": 0}, "validation data only, because the augmentation makes new"),
    ],
)
def test_images(pictures: Path, arguments: Any, expected: str, caplog: pytest.LogCaptureFixture) -> None:
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
        ([], (X, Y), "auto", "off, because "),
        (["stem"], TensorDataset(X, Y, Y), "auto", "a custom dataset may return different samples"),
        (["stem", "block1"], (X[:10], Y[:10]), "auto", "too few samples and epochs"),
    ],
)
def test_the_reason_for_no_cache_is_logged(
    frozen: list[str], data: Any, cache: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(cache, tuned(frozen), data, False)
    assert expected in said(caplog)


def test_without_a_cache_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(False, tuned())
    assert said(caplog) == ""


def test_activations_that_exceed_memory_are_not_kept(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    report_free_memory(monkeypatch, 1024)
    with caplog.at_level(logging.INFO, "finetune"):
        fitted("memory", tuned())
    assert "more than half of the 1 kB that are free" in said(caplog)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (240_000, "in memory (110 kB for 70 samples)"),
        (210_000, "in memory (78 kB for 50 samples), training data only, because there is no room for more"),
        (50_000, "off, because 110 kB for 70 samples is more than half of the 50 kB that are free"),
    ],
)
def test_training_and_validation_data_share_a_budget(
    free: int, expected: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    report_free_memory(monkeypatch, free)
    with caplog.at_level(logging.INFO, "finetune"):
        cached = fitted("memory", tuned())
    assert expected in said(caplog)
    assert_equal(fitted(False, tuned()), cached)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_nothing_is_stored_for_a_single_epoch(cache: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(cache, tuned(), epochs=1)
    assert "off, because no sample is seen twice" in said(caplog)


class Slow(nn.Conv2d):
    """Takes a millisecond per sample, so that skipping it pays on any machine."""

    def forward(self, input: Tensor) -> Tensor:
        time.sleep(0.001 * len(input))
        return super().forward(input)


def slow() -> FineTuner:
    tuner = tuned()
    tuner.model.stem[0].__class__ = Slow
    return tuner


@pytest.mark.no_cover
def test_auto_trains_the_same_as_no_cache(caplog: pytest.LogCaptureFixture) -> None:
    many = {"epochs": 30, "batch_size": 25}
    with caplog.at_level(logging.INFO, "finetune"):
        assert_equal(fitted(False, slow(), **many), fitted("auto", slow(), **many))
    assert "computed once" in said(caplog)


@pytest.mark.no_cover
def test_auto_uses_the_disk_if_memory_has_no_room(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    report_free_memory(monkeypatch, 0)
    many = {"epochs": 30, "batch_size": 25}
    with caplog.at_level(logging.INFO, "finetune"):
        assert_equal(fitted(False, slow(), **many), fitted("auto", slow(), **many))
    assert "kept on disk" in said(caplog)


def test_auto_does_not_cut_a_prefix_if_the_first_layers_are_trainable(caplog: pytest.LogCaptureFixture) -> None:
    for frozen, data in ([], (X, Y)), (["block1", "fc"], (X, Y)):
        with caplog.at_level(logging.INFO, "finetune"):
            fitted("auto", tuned(frozen), data, epochs=14)
    assert said(caplog).count("off, because the first layers are trainable") == 2


@pytest.mark.parametrize("cache", ["memroy", True, 1, "", None])
def test_an_unknown_kind_of_cache_is_an_error(cache: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected cache to be 'auto', 'memory', 'disk', a folder or False"):
        fitted(cache, tuned())


def test_a_folder_that_is_a_file_is_an_error_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", str(tmp_path / "file" / "below")):
        with pytest.raises(ArgumentError, match="is not a folder"):
            fitted(folder, tuned())


# ---------------------------------------------------------------- on disk


class Counting(nn.Conv2d):
    """Counts the samples that pass through, in batches of the training batch size."""

    passed = 0

    def forward(self, input: Tensor) -> Tensor:
        Counting.passed += len(input) if len(input) == 8 else 0
        return super().forward(input)


def counted(frozen: Any = ("stem", "block1"), seed: int = 0, change: Any = None) -> FineTuner:
    """Return a tuner that counts the samples through its stem, from 0."""
    torch.manual_seed(0)
    model = Net()
    model.stem[0].__class__ = Counting
    torch.manual_seed(seed)
    model.fc = nn.Linear(8, 3)
    if change is not None:
        change(model)
    Counting.passed = 0
    return FineTuner(model, device="cpu").freeze(list(frozen))


EVEN = (X[:48], Y[:48])


@pytest.mark.parametrize("kind", ["disk", "folder"])
def test_disk_training_equals_uncached_training(kind: str, tmp_path: Path) -> None:
    strategy = [Phase("fc", 2, name="probe"), Phase(["block2", "fc"], 2, name="last"), Phase("*", 1, name="all")]
    plain = fitted(False, tuned(), strategy=strategy)
    for _ in range(2):
        cache = "disk" if kind == "disk" else str(tmp_path / "new" / "folder")
        assert_equal(plain, fitted(cache, tuned(), strategy=strategy))


@pytest.mark.no_cover
def test_a_sweep_of_heads_costs_one_pass(tmp_path: Path) -> None:
    """Other heads, rates, batch orders and folds of the same data reuse all activations."""
    passed = []
    for run in range(12):
        tuner = counted(["stem", "block1", "block2"], seed=run)
        fold = torch.arange(48).roll(run % 6 * 8)
        data = (X[fold[:40]], Y[fold[:40]])
        fitted(tmp_path, tuner, data, (X[fold[40:]], Y[fold[40:]]), lr=10 ** -(1 + run % 3), epochs=2)
        passed.append(Counting.passed)
    assert passed == [48] + 11 * [0]


def same_again(folder: Path, **changes: Any) -> int:
    """Train again, with and without a cache; return the number of samples through the frozen layers."""
    data, frozen = changes.pop("data", EVEN), changes.pop("frozen", ("stem", "block1"))
    tuner = counted(frozen, change=changes.pop("change", None))
    plain = copy.deepcopy(tuner)
    fitted(folder, tuner, data, False, **changes)
    passed = Counting.passed
    fitted(False, plain, data, False, **changes)
    if data[0].dtype == torch.float64:  # convolutions in channels_last round by a sample's position
        torch.testing.assert_close(plain.model.state_dict(), tuner.model.state_dict(), rtol=0, atol=1e-9)
    else:
        assert_equal(plain, tuner)
    return passed


def _weight(model: Any) -> None:
    with torch.no_grad():
        model.block1[0].weight[0, 0, 0, 0] += 1e-3


def _buffer(model: Any) -> None:
    model.stem[1].running_mean[3] += 1e-3


STALE: dict[str, dict[str, Any]] = {
    "a weight": {"change": _weight},
    "a buffer": {"change": _buffer},
    "an epsilon": {"change": lambda model: setattr(model.stem[1], "eps", 1e-3)},
    "the type": {"change": lambda model: model.double(), "data": (X[:48].double(), Y[:48])},
    "the size": {"data": (X[:48, :, :14, :14].clone(), Y[:48])},
    "the samples": {"data": (X[:48] + 1e-3, Y[:48])},
    "the boundary": {"frozen": ["stem"]},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of stored activations, from which a second run took its own."""
    folder = tmp_path_factory.mktemp("stored")
    assert same_again(folder) == 48
    assert same_again(folder) == 0
    return folder


@pytest.mark.parametrize("change", STALE.values(), ids=STALE)
def test_trap_42_any_change_computes_anew(change: dict[str, Any], stored: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stored, tmp_path / "stored"))
    assert same_again(folder, **change) == 48
    assert same_again(folder, lr=1e-3, batch_size=16) == 0


def test_trap_42_precision_is_computed_anew(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16", "bf16"):
        tuner = tuned(precision=precision)
        assert_equal(fitted(False, tuned(precision=precision)), fitted(tmp_path, tuner))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_only_new_samples_are_computed(tmp_path: Path) -> None:
    fitted(tmp_path, counted(), (X[:24], Y[:24]), False)
    assert Counting.passed == 24
    fitted(tmp_path, counted(), EVEN, False, epochs=1)
    assert 24 <= Counting.passed <= 48  # in whole batches, some of them with samples of both kinds


@pytest.mark.no_cover
def test_trap_42_images(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another size, augmentation or file content computes anew; a second run does not."""
    folder = tmp_path_factory.mktemp("cache")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)  # as if the files were a minute old

    def run(val: Any = 1 / 3, **changes: Any) -> int:
        preprocessing = {"crop_size": 16, "resize_size": 18, **changes.pop("preprocessing", {})}
        torch.manual_seed(0)
        model = Net()
        model.stem[0].__class__ = Counting
        passed, both = [], []
        for cache in (folder, False):
            tuner = FineTuner(copy.deepcopy(model), device="cpu", preprocessing=preprocessing).replace_head(2)
            tuner.freeze(["stem", "block1"])
            Counting.passed = 0
            both.append(fitted(cache, tuner, pictures, val, epochs=1, **{"augment": False, **changes}))
            passed.append(Counting.passed)
        assert_equal(*both)
        return passed[0]

    assert run() == 24
    assert run() == 0
    assert run(val=False, batch_size=24) == 0  # the validation split is found in the whole data
    assert run(preprocessing={"resize_size": 20}) == 24
    assert run(preprocessing={"interpolation": "bicubic"}) == 24
    assert run(augment=True) == 16  # training images are new each time; validation data is found
    shutil.copy(pictures / "ant" / "1.png", pictures / "bee" / "2.png")
    assert run() >= 1
    assert run() == 0


def test_a_temporary_file_is_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class StopError(BaseException):
        pass

    class Stop(Callback):
        def on_epoch_end(self, run: Any) -> None:
            raise StopError

    fitted("disk", tuned())
    assert not list(tmp_path.iterdir())
    with pytest.raises(StopError):
        fitted("disk", tuned(), callbacks=[Stop()])
    assert not list(tmp_path.iterdir())


def test_activations_stored_before_an_interrupt_are_found(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step_end(self, run: Any) -> None:
            if run.position.window == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path, counted(), EVEN, False, callbacks=[Stop()])
    assert Counting.passed == 24
    fitted(tmp_path, counted(), EVEN, False)
    assert Counting.passed == 24


def test_two_runs_share_a_folder_at_once(tmp_path: Path) -> None:
    """A run that starts while another fills the store trains as usual, and finds the marked rows."""
    other: list[FineTuner] = []

    class Meanwhile(Callback):
        def on_epoch_end(self, run: Any) -> None:
            if not other:
                other.append(fitted(tmp_path, tuned(), EVEN, False))

    first = fitted(tmp_path, tuned(), EVEN, False, callbacks=[Meanwhile()])
    assert_equal(first, fitted(False, tuned(), EVEN, False))
    assert_equal(first, other[0])


def test_a_full_disk_is_logged_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    plain = fitted(False, tuned(), EVEN, False)
    with monkeypatch.context() as full, caplog.at_level(logging.INFO, "finetune"):
        full.setattr(os, "posix_fallocate", refuse, raising=False)
        assert_equal(plain, fitted(tmp_path, tuned(), EVEN, False))
    assert "cache: off, because the disk of" in said(caplog)
    caplog.clear()

    class Fill(Callback):
        def on_step_end(self, run: Any) -> None:
            monkeypatch.setattr(os, "write", refuse)

    with caplog.at_level(logging.INFO, "finetune"):
        assert_equal(plain, fitted(tmp_path, tuned(), EVEN, False, callbacks=[Fill()]))
    assert said(caplog).count("no more activations are stored, because the disk of") == 1


def _flip(file: Path) -> None:
    file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))


def test_damaged_activations_are_computed_anew_and_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = fitted(False, counted(), EVEN, False)
    fitted(tmp_path, counted(), EVEN, False)
    (rows,) = tmp_path.glob("*/0.bin")
    _flip(rows)
    with caplog.at_level(logging.WARNING, "finetune"):
        assert_equal(plain, fitted(tmp_path, counted(), EVEN, False))
    assert Counting.passed == 48
    assert said(caplog).count(f"computed anew, because 8 rows in {rows.parent} do not match their checksums") == 1
    fitted(tmp_path, counted(), EVEN, False)
    assert Counting.passed == 0


@pytest.mark.parametrize("name", ["0.bin", "sums.bin", "whole.bin", "keys.bin", "header.json"])
def test_a_file_truncated_in_use_changes_nothing(name: str, tmp_path: Path) -> None:
    class Truncate(Callback):
        def on_epoch_end(self, run: Any) -> None:
            (file,) = tmp_path.glob(f"*/{name}")
            os.truncate(file, 7)

    plain = fitted(False, tuned(), EVEN, False)
    assert_equal(plain, fitted(tmp_path, tuned(), EVEN, False, callbacks=[Truncate()]))
    assert_equal(plain, fitted(tmp_path, tuned(), EVEN, False))


def test_a_planted_link_is_said_and_not_written_through(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = fitted(tmp_path / "cache", tuned(), EVEN, False)
    (rows,) = (tmp_path / "cache").glob("*/0.bin")
    (tmp_path / "own").write_bytes(bytes(100_000))
    rows.unlink()
    rows.symlink_to(tmp_path / "own")
    with caplog.at_level(logging.INFO, "finetune"):
        assert_equal(plain, fitted(tmp_path / "cache", tuned(), EVEN, False))
    assert f"but this is a link: '{rows}'" in said(caplog)
    assert (tmp_path / "own").read_bytes() == bytes(100_000)


def test_place_bytes_and_seconds_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        fitted(tmp_path, tuned(), EVEN, False)
        fitted(tmp_path, tuned(), EVEN, False)
    lines = said(caplog)
    assert f"kept in '{tmp_path}' (75 kB for 48 samples); an epoch then takes about" in lines
    assert "75 kB for 48 samples, 48 of them already there" in lines


# ---------------------------------------------------------------- custom data sets


class Own(Dataset[Any]):
    """Items that are loaded one by one, as by torchvision's ImageFolder."""

    def __init__(self, draws: bool = False) -> None:
        self.targets, self.draws, self.loaded = Y[:24].tolist(), draws, 0

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loaded += 1
        noise = torch.rand(3, 1, 1) if self.draws else 0.0
        return X[index] + noise, self.targets[index]


@pytest.mark.parametrize("draws", [False, True])
def test_validation_data_of_any_map_style_data_set_is_stored(draws: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The random numbers of a validation sample are the same in every epoch."""
    val = Own(draws)
    with caplog.at_level(logging.INFO, "finetune"):
        cached = fitted("memory", tuned(), EVEN, val, epochs=6)
    assert "in memory" in said(caplog)
    assert val.loaded < 5 * 24  # labels and audit, two looks at what may vary, one epoch; not six
    assert_equal(cached, fitted(False, tuned(), EVEN, Own(draws), epochs=6))


def test_a_custom_training_set_is_stored_if_requested_and_constant(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        cached = fitted("memory", tuned(), Own(), False)
    assert "kept in memory" in said(caplog)
    assert_equal(cached, fitted(False, tuned(), Own(), False))


@pytest.mark.parametrize(
    ("cache", "data", "reason"),
    [
        ("auto", Own(), "pass cache='memory' if yours does not"),
        ("memory", Own(draws=True), "your dataset returns different samples for the same index"),
        ("memory", DataLoader(Own(), batch_size=8), "samples of a DataLoader or a stream have no index"),
    ],
    ids=["not asked", "random", "loader"],
)
def test_trap_42_data_that_may_differ_is_not_stored(
    cache: str, data: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "finetune"):
        cached = fitted(cache, tuned(), data, False)
    assert reason in said(caplog)
    assert_equal(cached, fitted(False, tuned(), data, False))


def test_an_items_own_label_is_used() -> None:
    class Relabeled(Own):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            item, label = super().__getitem__(index)
            return item, 2 - label

    assert_equal(fitted(False, tuned(), Relabeled(), False), fitted("memory", tuned(), Relabeled(), False))
