"""`compare`: each run equals a `fit`, failures are isolated, and interrupted comparisons continue."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import finetune
from finetune import Comparison, FineTuner, Phase, compare, strategies
from finetune.callbacks import CSVLogger, EarlyStopping
from finetune.data.randomness import seeded
from finetune.errors import ArgumentError, DataError
from finetune.model.stages import Stage
from tests.helpers.worlds import in_processes


class Net(nn.Module):
    """Three stages and a head."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.layer2(self.layer1(self.stem(x))))
        return out


def net(seed: int = 0, num_classes: int = 3) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(num_classes)


def made() -> nn.Module:
    """Return a model with weights from the global random state."""
    return Net()


def blobs(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    return torch.randn(count, 4, generator=generator) + 1.5 * nn.functional.one_hot(y, 4), y


DATA, VAL = blobs(), blobs(45, 1)
FIXED: dict[str, Any] = {"budget": 2, "batch_size": 10, "lr": 1e-2, "progress": False, "device": "cpu"}

CALLS: list[str] = []  # names of the strategies below, one per trained run


def probe(stages: Sequence[Stage], epochs: int, lr: Any) -> list[Phase]:
    CALLS.append("probe")
    return strategies.linear_probe(stages, epochs, lr)


def everything(stages: Sequence[Stage], epochs: int, lr: Any) -> list[Phase]:
    CALLS.append("everything")
    return strategies.full_finetune(stages, epochs, lr)


def at_times(stages: Sequence[Stage], epochs: int, lr: Any) -> list[Phase]:
    CALLS.append("at_times")
    if ENDING:
        raise ENDING.pop()
    return strategies.last_stage(stages, epochs, lr)


ENDING: list[BaseException] = []


@pytest.fixture(autouse=True)
def _uncounted() -> None:
    CALLS.clear()
    ENDING.clear()


def compared(models: Any = None, data: Any = DATA, val: Any = VAL, **arguments: Any) -> Comparison:
    return compare(net() if models is None else models, data, val, **{"seeds": 2, **FIXED, **arguments})


def results(comparison: Comparison) -> list[tuple[Any, ...]]:
    """Return the rows without measurements of time and memory."""
    return [
        (row.model, row.strategy, row.seed, row.value, row.trained_parameters, row.error) for row in comparison.rows
    ]


# ---------------------------------------------------------------- the runs


@pytest.mark.parametrize("val", [VAL, 0.3, None], ids=["given", "share", "none"])
def test_each_run_equals_a_fit(val: Any) -> None:
    comparison = compared(val=val, strategies=["linear_probe", "lp_ft"], seeds=[3, 7])

    expected = []
    for seed in (3, 7):
        for strategy in ("linear_probe", "lp_ft"):
            tuner = FineTuner(net(), device="cpu", seed=seed)
            history = tuner.fit(
                DATA, 0.2 if val is None else val, epochs=2, strategy=strategy, batch_size=10, lr=1e-2, cache=False
            )
            trained = 27 if strategy == "linear_probe" else 227
            expected.append(("Net", strategy, seed, history[-1]["val_accuracy"], trained, None))
    assert results(comparison) == expected
    assert comparison.monitor == "accuracy"


def test_the_last_epoch_counts_not_the_best() -> None:
    unsteady = {"lr": 0.05, "schedule": "constant", "batch_size": 10}
    comparison = compared(strategies="full_finetune", seeds=[3], budget=4, **unsteady)

    history = FineTuner(net(), device="cpu", seed=3).fit(DATA, VAL, epochs=4, strategy="full_finetune", **unsteady)
    values = [row["val_accuracy"] for row in history]
    assert comparison.rows[0].value == values[-1] < max(values)


@pytest.mark.no_cover
def test_runs_are_ordered_by_seed() -> None:
    comparison = compared({"a": net(), "b": made}, strategies=("linear_probe", "full_finetune"), budget=1)

    assert [(row.seed, row.model, row.strategy) for row in comparison.rows] == [
        (seed, model, strategy)
        for seed in (0, 1)
        for model in ("a", "b")
        for strategy in ("linear_probe", "full_finetune")
    ]


def test_a_given_module_never_changes(same: Any) -> None:
    model = net(num_classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    compared(model, strategies="full_finetune")

    assert same(dict(model.state_dict()), before)
    assert model.fc.out_features == 5
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_model_function_depends_on_the_seed_alone() -> None:
    comparisons = []
    for state in (1, 2):
        torch.manual_seed(state)
        comparisons.append(compared(made, strategies="linear_probe"))
        assert torch.initial_seed() == state

    one, other = (results(comparison) for comparison in comparisons)
    assert one == other


def test_a_head_is_replaced_unless_it_fits() -> None:
    fitting, other = net(), net(num_classes=10)
    with torch.no_grad():
        fitting.fc.weight.zero_()
        fitting.fc.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))  # a kept head predicts class 2
    one_class = (DATA[0], torch.where(DATA[1] == 1, 1, 2))

    kept = compared(fitting, one_class, one_class, strategies="linear_probe", seeds=1, budget=1, lr=1e-9)
    replaced = compared(other, strategies="full_finetune", seeds=1, budget=1)

    assert kept.rows[0].value == pytest.approx(2 / 3)
    assert replaced.rows[0].trained_parameters == 227


def test_trained_parameters_and_checkpoint_size(tmp_path: Path) -> None:
    comparison = compared(strategies=["linear_probe", "last_stage", "full_finetune", "gradual_unfreezing"], seeds=1)

    tuner = FineTuner(net(), device="cpu")
    tuner.fit(DATA, VAL, epochs=2, strategy="full_finetune", batch_size=10, lr=1e-2)
    size = tuner.save_checkpoint(tmp_path / "model.safetensors").stat().st_size
    assert [entry.trained_parameters for entry in comparison.entries] == [27, 99, 227, 227]
    assert all(abs(entry.checkpoint_size - size) < 1000 for entry in comparison.entries)
    assert all(entry.seconds > 0 and entry.images_per_second > 0 for entry in comparison.entries)


def test_a_lower_loss_is_better() -> None:
    X, _ = DATA
    target = X @ torch.tensor([1.0, -1.0, 2.0, 0.5])

    comparison = compared(net(num_classes=7), (X, target), (X, target), strategies=["linear_probe", "full_finetune"])

    means = {entry.strategy: entry.mean for entry in comparison.entries}
    assert (comparison.monitor, comparison.higher_is_better) == ("loss", False)
    assert comparison.best is not None
    assert means[comparison.best.strategy] == min(means.values())


def test_monitor_selects_the_compared_metric() -> None:
    comparison = compared(strategies="linear_probe", monitor="f1", metrics=["accuracy", "f1"], seeds=1)

    tuner = FineTuner(net(), device="cpu", metrics=["accuracy", "f1"])
    history = tuner.fit(DATA, VAL, epochs=2, strategy="linear_probe", batch_size=10, lr=1e-2)
    assert comparison.rows[0].value == history[-1]["val_f1"]
    assert comparison.higher_is_better
    assert "f1" in str(comparison)


def image_folder(folder: Path, count: int) -> Path:
    for index, name in enumerate(("ant", "bee")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 16), (40 * index, 9 * number, 30)).save(folder / name / f"{number}.png")
    return folder


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 9)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).relu().mean((2, 3)))
        return out


def test_a_divided_folder_keeps_its_split_and_others_are_split_by_the_seed(tmp_path: Path) -> None:
    image_folder(tmp_path / "data" / "train", 5)
    image_folder(tmp_path / "data" / "val", 3)
    settings = {"preprocessing": {"crop_size": 12, "resize_size": 14}, "augment": False}

    divided = compared(Conv, tmp_path / "data", None, strategies="linear_probe", seeds=[4], **settings)
    whole = compared(Conv, tmp_path / "data" / "train", None, strategies="linear_probe", seeds=[4], **settings)

    for comparison, data in ((divided, tmp_path / "data"), (whole, tmp_path / "data" / "train")):
        with seeded(4, "model"):
            model = Conv()
        tuner = FineTuner(model, device="cpu", seed=4, preprocessing=settings["preprocessing"]).replace_head(2)
        history = tuner.fit(data, epochs=2, strategy="linear_probe", batch_size=10, lr=1e-2, augment=False)
        assert comparison.rows[0].value == history[-1]["val_accuracy"]


def fold(seed: int) -> tuple[Any, Any]:
    chosen = torch.arange(len(DATA[0])) % 4 == seed
    return (DATA[0][~chosen], DATA[1][~chosen]), (DATA[0][chosen], DATA[1][chosen])


def test_data_may_be_a_function_of_the_seed(tmp_path: Path) -> None:
    comparison = compared(data=fold, val=None, strategies=probe, seeds=3, folder=tmp_path)

    for row, seed in zip(comparison.rows, range(3), strict=True):
        train, val = fold(seed)
        history = FineTuner(net(), device="cpu", seed=seed).fit(
            train, val, epochs=2, strategy="linear_probe", batch_size=10, lr=1e-2
        )
        assert row.value == history[-1]["val_accuracy"]
    CALLS.clear()
    compared(data=lambda seed: fold(seed) if seed else fold(3), val=None, strategies=probe, seeds=3, folder=tmp_path)
    assert CALLS == ["probe"]  # only the seed with different data


# ---------------------------------------------------------------- arguments


@pytest.mark.no_cover
def test_labels_are_derived_or_given() -> None:
    listed = compared(
        [net(), net(1), made],
        strategies=["last_stage", probe, partial(strategies.lp_ft, probe=None), [Phase("fc", 1), Phase("*", 1)]],
        seeds=1,
    )
    named = compared({"small": net()}, strategies={"mine": probe, "all": [Phase("*", 2)]}, seeds=1)
    single = compared(strategies=[Phase("fc", 1, name="head"), Phase("*", 1, name="all")], seeds=1)

    assert list(dict.fromkeys(entry.model for entry in listed.entries)) == ["Net", "Net (2)", "made"]
    strategies_of_one = [entry.strategy for entry in listed.entries if entry.model == "Net"]
    assert strategies_of_one == ["last_stage", "probe", "lp_ft(probe=None)", "fit + fit"]
    assert [(entry.model, entry.strategy) for entry in named.entries] == [("small", "mine"), ("small", "all")]
    assert [entry.strategy for entry in single.entries] == ["head + all"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategies": ["linear_prob"]}, r"no strategy 'linear_prob'.*'linear_probe'"),
        ({"strategies": []}, "at least one strategy"),
        ({"strategies": [3]}, "Expected strategy to be a name or a list of Phase"),
        ({"strategies": {"mine": [Phase("*", 3)]}}, r"'mine' take 3 epochs.*budget of each run is 2"),
        ({"models": []}, "at least one model"),
        ({"models": [3]}, "Expected a model to be a name"),
        ({"seeds": 0}, "Expected seeds"),
        ({"seeds": "3"}, "Expected seeds"),
        ({"seeds": [1, 1]}, "Expected seeds"),
        ({"seeds": True}, "Expected seeds"),
        ({"budget": 0}, "Expected budget"),
        ({"budget": 2.5}, "Expected budget"),
        ({"batchsize": 3}, r"no argument 'batchsize'.*'batch_size'"),
        ({"seed": 3}, r"no argument 'seed'.*'seeds'"),
        ({"epochs": 3}, "no argument 'epochs'"),
        ({"data": lambda seed: (DATA, VAL)}, "omit val"),
        ({"data": lambda seed: DATA[0], "val": None}, r"return a pair \(train, val\)"),
        ({"val": False}, "requires validation data"),
        ({"val": 3.0}, "Expected .* to be a number above 0 and below 1, but got 3.0"),
    ],
)
def test_invalid_arguments_raise_before_the_first_run(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        compared(**{"strategies": [everything], **arguments})
    assert not CALLS


@pytest.mark.parametrize("data", ["no/such/folder", 3, (torch.zeros(4, 2), torch.zeros(3))])
def test_unusable_data_raises_before_the_first_run(data: Any) -> None:
    with pytest.raises(DataError):
        compared(data=data, strategies=everything)
    assert not CALLS


def test_an_unwritable_folder_raises_before_the_first_run(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ArgumentError, match=r"taken.* cannot be written"):
        compared(strategies=everything, folder=tmp_path / "taken")
    assert not CALLS


# ---------------------------------------------------------------- failures


def wild(stages: Sequence[Stage], epochs: int, lr: Any) -> list[Phase]:
    return [Phase("*", epochs, 1e30)]


def too_long(stages: Sequence[Stage], epochs: int, lr: Any) -> list[Phase]:
    return [Phase("*", epochs + 1)]


def out_of_memory() -> nn.Module:
    raise torch.OutOfMemoryError("no room")


BROKEN = {
    "no such model": ({"bad": "resnet19"}, "resnet18"),
    "a model that cannot be made": (out_of_memory, "OutOfMemoryError: no room"),
    "a model that is not one": (lambda: 3, "to return an nn.Module, but got 3"),
    "a model for other data": (nn.Sequential(nn.Linear(7, 3)), "DataError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_failing_model_leaves_the_others_unaffected(case: str) -> None:
    given, reason = BROKEN[case]
    bad = given["bad"] if isinstance(given, dict) else given

    comparison = compared({"good": net(), "bad": bad, "too": net(1)}, strategies=["linear_probe"])

    assert results(comparison)[::3] == results(compared({"good": net()}, strategies=["linear_probe"]))
    assert [row.error is not None for row in comparison.rows] == [False, True, False] * 2
    assert all(reason in str(row.error) for row in comparison.failed)
    assert [entry.model for entry in comparison.entries] == ["good", "too"]
    assert f"Failed: bad, linear_probe, seed 0: {comparison.failed[0].error}" in str(comparison)


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (wild, "NonFiniteError"),
        (too_long, "takes 3 epochs, but the budget of each run is 2"),
        ("surgical:layer9", "PatternError"),
        ([Phase("fc", 2, lr={"nothing": 1e-3})], "PatternError"),
    ],
)
def test_a_failing_strategy_leaves_the_others_unaffected(strategy: Any, reason: str) -> None:
    comparison = compared(strategies={"bad": strategy, "good": "linear_probe"})

    assert [row.error is not None for row in comparison.rows] == [True, False] * 2
    assert all(reason in str(row.error) for row in comparison.failed)
    assert results(comparison)[1::2] == results(compared(strategies={"good": "linear_probe"}))


def test_an_entry_that_fails_with_one_seed_keeps_its_other_seeds() -> None:
    ENDING.append(RuntimeError("now and then"))
    comparison = compared(strategies=["linear_probe", at_times], seeds=3)

    assert [list(entry.values) for entry in comparison.entries] == [[0, 1, 2], [1, 2]]
    assert comparison.best is comparison.entries[0]
    assert comparison.entries[1].p_value is not None  # over their two common seeds


def test_if_every_run_fails_the_error_lists_the_reasons() -> None:
    with pytest.raises(ArgumentError, match=r"Every run failed: .*layer8.*; .*layer9"):
        compared(strategies=["surgical:layer8", "surgical:layer9"])
    with pytest.raises(ArgumentError, match=r"^Every run failed: .*no monitored value 'val_f2'.*val_loss"):
        compared(strategies=["linear_probe", "last_stage"], monitor="f2")


# ---------------------------------------------------------------- finished runs


@pytest.mark.no_cover
def test_finished_runs_are_reused_when_seeds_and_entries_are_added(tmp_path: Path) -> None:
    first = compared(strategies=[probe], folder=tmp_path)
    assert CALLS == ["probe"] * 2
    CALLS.clear()

    again = compared(strategies=[probe], folder=tmp_path)
    assert not CALLS
    assert again.rows == first.rows

    more = compared({"mine": net()}, strategies={"another": everything, "label": probe}, seeds=3, folder=tmp_path)
    assert CALLS == ["everything", "everything", "everything", "probe"]
    assert [row.value for row in more.rows if row.strategy == "label"][:2] == [row.value for row in first.rows]
    assert [row.model for row in more.rows] == ["mine"] * 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of finished runs, which an unchanged call reuses, also in a copy."""
    folder = tmp_path_factory.mktemp("finished") / "runs"
    compared(strategies=probe, folder=folder)
    CALLS.clear()
    compared(strategies=probe, folder=shutil.copytree(folder, folder.with_name("copy")))
    assert not CALLS
    return folder


@pytest.mark.parametrize(
    "changed",
    [
        {"models": net(1)},
        {"models": made},
        {"data": (DATA[0] + 1, DATA[1])},
        {"val": (VAL[0], VAL[1].flip(0))},
        {"val": 0.2},
        {"budget": 3},
        {"lr": 1e-3},
        {"batch_size": 11},
        {"monitor": "loss"},
        {"weight_decay": 0.5},
        {"seeds": [5, 6]},
        {"strategies": partial(probe)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_change_that_affects_the_result_repeats_the_run(
    changed: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "finished"))

    compared(**{"strategies": probe, "folder": folder, **changed})

    assert CALLS == ["probe"] * 2


@pytest.mark.no_cover
def test_failed_runs_are_retried(tmp_path: Path) -> None:
    ENDING.append(RuntimeError("a passing trouble"))
    first = compared(strategies=[probe, at_times], folder=tmp_path)
    assert [row.error is not None for row in first.rows] == [False, True, False, False]
    CALLS.clear()

    again = compared(strategies=[probe, at_times], folder=tmp_path)

    assert CALLS == ["at_times"]
    assert not again.failed
    assert results(again) == results(compared(strategies=[probe, at_times]))


@pytest.mark.no_cover
def test_the_next_call_continues_after_an_interrupt(tmp_path: Path) -> None:
    ENDING.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        compared(strategies=[probe, everything, at_times], folder=tmp_path)
    assert CALLS == ["probe", "everything", "at_times"]
    assert (tmp_path / "cache").is_dir()
    CALLS.clear()

    comparison = compared(strategies=[probe, everything, at_times], folder=tmp_path)

    assert CALLS == ["at_times", "probe", "everything", "at_times"]
    assert results(comparison) == results(compared(strategies=[probe, everything, at_times]))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.no_cover
def test_a_run_with_a_damaged_file_is_repeated(tmp_path: Path) -> None:
    first = compared(strategies=[probe], seeds=3, folder=tmp_path)
    files = sorted((tmp_path / "runs").iterdir())
    whole = json.loads(files[0].read_text())
    files[0].write_text("{")
    files[1].write_text(json.dumps({**whole, "unknown": 1}))
    files[2].write_text("[]")
    CALLS.clear()

    again = compared(strategies=[probe], seeds=3, folder=tmp_path)

    assert CALLS == ["probe"] * 3
    assert results(again) == results(first)
    assert sorted((tmp_path / "runs").iterdir()) == files


def test_without_a_folder_no_files_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    compared(strategies=["linear_probe"])

    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- shared cache


class Counted(nn.Module):
    """A stage that counts its samples, except for the small batches that the cache planner tries."""

    passed = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 5:
            Counted.passed += len(x)
        out: Tensor = self.inner(x).relu()
        return out


def counting() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(Counted(), nn.Linear(4, 4), nn.Linear(4, 3))


def passed(model: nn.Module, **arguments: Any) -> tuple[int, Comparison]:
    Counted.passed = 0
    comparison = compared(model, **arguments)
    return Counted.passed, comparison


@pytest.mark.no_cover
def test_frozen_layers_run_once_for_all_strategies_and_seeds() -> None:
    once = len(DATA[0]) + len(VAL[0]) - 5  # without its last batch of 5
    strategies_of_one_prefix = {"one": "linear_probe", "other": [Phase("2", 1, lr=0.1), Phase("2", 1, lr=0.01)]}

    alone, _ = passed(counting(), strategies="linear_probe", seeds=1)
    whole, _ = passed(counting(), strategies="linear_probe", seeds=1, cache=False)
    shared, comparison = passed(counting(), strategies=strategies_of_one_prefix, seeds=3)
    by_model, _ = passed({"a": counting(), "b": counting()}, strategies="linear_probe", seeds=2)

    assert alone == shared == by_model == once
    assert whole > once
    assert [row.found for row in comparison.rows] == [0, 1, 1, 1, 1, 1]
    assert "reused activations" in str(comparison)


def test_a_given_cache_folder_is_kept_and_reused(tmp_path: Path) -> None:
    first, _ = passed(counting(), strategies="linear_probe", seeds=1, cache=tmp_path / "mine")
    again, comparison = passed(counting(), strategies="linear_probe", seeds=[8], cache=tmp_path / "mine")

    assert (first > 0, again) == (True, 0)
    assert comparison.rows[0].found == 1


def test_seeds_share_the_activations_of_unaugmented_images(tmp_path: Path) -> None:
    """The cache keeps four views per image, and one of them is the unaugmented image."""
    data, val = image_folder(tmp_path / "train", 6), image_folder(tmp_path / "val", 4)
    time.sleep(2.1)  # a cache key of a file younger than 2 seconds includes its content
    settings = {"preprocessing": {"crop_size": 12, "resize_size": 14}, "budget": 5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Conv()

    comparison = compared(model, data, val, strategies={"one": "linear_probe", "other": probe}, **settings)

    pictures, evaluated = 12, 8
    again = (pictures + evaluated) / (4 * pictures + evaluated)
    assert [row.found for row in comparison.rows] == [0, 1, pytest.approx(again), 1]
    assert [row.found for row in compared(model, data, val, strategies="linear_probe", cache=False).rows] == [None] * 2


def test_the_subpackage_does_not_hide_the_function() -> None:
    assert finetune.compare is compare
    assert callable(finetune.compare)


@pytest.mark.parametrize(
    ("targets", "settings", "kind"),
    [
        (DATA[1] % 2, {}, "binary"),
        (DATA[1], {"loss": "mse"}, "regression"),
        (DATA[1], {"loss": nn.L1Loss()}, "regression"),
        (DATA[1], {"loss": lambda outputs, targets: (outputs - targets).abs().mean(), "monitor": "loss"}, None),
    ],
)
def test_a_head_of_one_output_that_fit_accepts_is_kept(targets: Tensor, settings: Any, kind: str | None) -> None:
    data = (DATA[0], targets)
    compared = compare(net(0, 1), data, data, strategies="full_finetune", seeds=1, **FIXED, **settings)
    tuner = FineTuner(net(0, 1), device="cpu", loss=settings.get("loss"))
    tuner.fit(data, data, epochs=2, batch_size=10, lr=1e-2, strategy="full_finetune", progress=False)

    assert kind is None or tuner.task.kind == kind
    assert compared.rows[0].error is None
    assert compared.rows[0].value == tuner.history[-1][f"val_{compared.monitor}"]


def test_a_model_whose_head_is_unclear_is_left_to_fit() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) * self.two(x)

    row = compare(TwoHeads(), DATA, VAL, strategies=[[Phase("*", 2)]], seeds=1, **FIXED).rows[0]
    assert row.error is None


@pytest.mark.parametrize(("mode", "better"), [("max", True), ("min", False), (None, None)])
def test_mode_says_which_value_is_better(mode: str | None, better: bool | None) -> None:
    """The compared metric, a function, does not say so itself."""

    def distance(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) - targets).abs().float().mean()

    def run() -> Comparison:
        names = ["linear_probe", "full_finetune"]
        given: Any = {"metrics": [distance], "monitor": "distance", "strategies": names}
        return compare(net(), DATA, VAL, seeds=1, mode=mode, **given, **FIXED | {"lr": {"fc": 1e-2, "*": 1e-1}})

    if better is None:
        with pytest.raises(ArgumentError, match="Pass mode='max'"):
            run()
        return
    comparison = run()
    values = {row.strategy: row.value for row in comparison.rows}
    assert all(row.higher_is_better is better for row in comparison.rows)
    assert values["linear_probe"] != values["full_finetune"]
    assert comparison.best is not None
    assert comparison.best.strategy == (max if better else min)(values, key=lambda name: values[name])


def test_each_run_has_a_logger_of_its_own(tmp_path: Path) -> None:
    strategies = ["linear_probe", "full_finetune"]
    given = {"strategies": strategies, "seeds": 2, "folder": tmp_path / "results", **FIXED}
    comparison = compare({"a/b": net()}, DATA, VAL, loggers=CSVLogger(tmp_path / "log.csv"), **given)

    for row in comparison.rows:
        with (tmp_path / f"log-a-b-{row.strategy}-seed-{row.seed}.csv").open(newline="") as file:
            assert float(list(csv.DictReader(file))[-1]["val_accuracy"]) == row.value

    again = compare({"a/b": net()}, DATA, VAL, loggers=CSVLogger(tmp_path / "again.csv"), **given)
    assert [row.value for row in again.rows] == [row.value for row in comparison.rows]
    assert not list(tmp_path.glob("again*"))  # finished runs are not logged again


def test_only_loggers_are_taken_for_loggers() -> None:
    with pytest.raises(ArgumentError, match=r"Expected loggers to be loggers, .* but got a EarlyStopping"):
        compare(net(), DATA, VAL, loggers=EarlyStopping(), **FIXED)  # type: ignore[arg-type]


_MEASURED = {"images_per_second", "seconds", "peak_memory", "found", "checkpoint_size"}  # which holds the seconds


def _compared(folder: Path | None = None) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    X = torch.randn(30, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    strategies = {"head": "linear_probe", "full": "full_finetune", "wrong": lambda *given: 0 / 0}
    found = compare(
        model,
        (X, (X[:, 0] > 0).long()),
        strategies=strategies,
        seeds=2,
        budget=1,
        device="cpu",
        folder=folder,
        progress=False,
    )
    return [{name: value for name, value in vars(row).items() if name not in _MEASURED} for row in found.rows]


def test_rows_are_those_of_one_process_and_each_run_is_trained_once(tmp_path: Path) -> None:
    def share(rank: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        first = _compared(tmp_path)
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
        again = _compared(tmp_path)
        assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
        assert len(files) == 4
        return first, again

    alone = _compared()
    assert [row["error"] is None for row in alone] == [True, True, False] * 2
    for shared in in_processes(2, share):
        assert not isinstance(shared, str), shared
        for rows in shared:
            assert rows == alone
