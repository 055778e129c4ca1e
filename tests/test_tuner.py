"""`FineTuner`: every kind of data, what may fail and what it leaves behind, freezing, modes, randomness."""

from __future__ import annotations

import copy
import csv
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from finetune import (
    ArgumentError,
    CheckpointError,
    DataError,
    FineTuneError,
    FineTuner,
    HeadError,
    History,
    NonFiniteError,
    PatternError,
    Phase,
)
from finetune.callbacks import EarlyStopping

TINY = {"crop_size": (8, 8), "resize_size": 8}


class Net(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.layer1 = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8))
        self.fc = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.stem(x)).relu())


def net(outputs: int = 3, seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(outputs)


def image_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def make(model: nn.Module | None = None, **settings: Any) -> FineTuner:
    return FineTuner(net() if model is None else model, **{"device": "cpu", **settings})


def images_tuner() -> FineTuner:
    return make(image_net(), preprocessing=TINY)


def data(n: int = 18, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % classes


def folder_of(path: Path, *classes: str, each: int = 4) -> Path:
    for k, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (9, 8), (60 * k, 40 * i, 99)).save(path / name / f"{name}{i}.png")
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "pets", "cat", "dog")


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def random_state() -> tuple[Any, ...]:
    _, key, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), key.tolist(), rest


def flags(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]


# ---------------------------------------------------------------------- kinds of data


class Map(Dataset[Any]):
    def __len__(self) -> int:
        return 18

    def __getitem__(self, index: int) -> Any:
        return data()[0][index], int(data()[1][index])


class Iterable(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(*data(), strict=True)


KINDS: dict[str, Callable[[], Any]] = {
    "tensors": data,
    "arrays": lambda: tuple(tensor.numpy() for tensor in data()),
    "lists": lambda: tuple(tensor.tolist() for tensor in data()),
    "tensor dataset": lambda: TensorDataset(*data()),
    "dataset": Map,
    "iterable": Iterable,
    "loader": lambda: DataLoader(TensorDataset(*data()), batch_size=6),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_trains_evaluates_and_predicts_the_same(kind: str) -> None:
    plain, tuner = make(), make()
    assert plain.evaluate(data()) == pytest.approx(tuner.evaluate(KINDS[kind]()), rel=1e-6)

    history = tuner.fit(KINDS[kind](), KINDS[kind](), epochs=2, batch_size=6, lr=0.01, progress=False)

    assert history is tuner.history
    assert [list(row)[:4] for row in history] == [["epoch", "phase", "loss", "accuracy"]] * 2
    assert {"val_loss", "val_accuracy", "lr", "seconds", "samples_per_second"} <= set(history[0])
    assert history[-1]["val_loss"] == pytest.approx(tuner.evaluate(data())["loss"], rel=1e-6)
    torch.testing.assert_close(tuner.predict(KINDS[kind]()), tuner.predict(data()[0]))


@pytest.mark.parametrize("kind", ["tensors", "arrays", "lists", "tensor dataset", "dataset"])
def test_data_in_memory_trains_to_the_same_weights(kind: str) -> None:
    plain, tuner = make(), make()
    for one, given in ((plain, data()), (tuner, KINDS[kind]())):
        one.fit(given, epochs=2, batch_size=5, progress=False)

    assert equal(weights(plain.model), weights(tuner.model))


def test_a_folder_is_split_and_the_user_is_told(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuner = images_tuner()
    with caplog.at_level("INFO"):
        tuner.fit(pets, epochs=1)

    assert "2 of 8 samples were held out" in caplog.text
    assert tuner.classes == ("cat", "dog")
    assert "val_loss" in tuner.history[0]


def test_a_share_and_false_and_a_folder_with_both_parts(tmp_path: Path, pets: Path) -> None:
    tuner = images_tuner()
    assert "val_loss" in tuner.fit(pets, 0.5, progress=False)[-1]
    assert "val_loss" not in tuner.fit(pets, False, progress=False)[-1]
    assert "val_loss" in tuner.fit(pets, val=pets, progress=False)[-1]
    assert "val_loss" not in make().fit(data(), progress=False)[-1]
    assert "val_loss" in make().fit(data(), 0.25, progress=False)[-1]

    folder_of(tmp_path / "both" / "train", "cat", "dog")
    folder_of(tmp_path / "both" / "val", "cat", "dog", each=1)
    whole, parts = images_tuner(), images_tuner()
    whole.fit(tmp_path / "both", progress=False)
    parts.fit(tmp_path / "both" / "train", tmp_path / "both" / "val", progress=False)
    assert equal(weights(whole.model), weights(parts.model))
    assert whole.history[0]["val_loss"] == parts.history[0]["val_loss"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_trains_as_its_folder(suffix: str, pets: Path) -> None:
    files = sorted(pets.rglob("*.png"))
    rows = [(str(path.relative_to(pets)), path.parent.name) for path in files]
    table = pets / f"labels{suffix}"
    if suffix == ".csv":
        with table.open("w", newline="") as opened:
            csv.writer(opened).writerows([("path", "label"), *rows])
    else:
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.table({"path": [r[0] for r in rows], "label": [r[1] for r in rows]}), table)
    of_folder, of_table = images_tuner(), images_tuner()
    of_folder.fit(pets, epochs=1, progress=False)
    of_table.fit(table, epochs=1, progress=False)

    assert of_table.classes == ("cat", "dog")
    assert equal(weights(of_folder.model), weights(of_table.model))


@pytest.mark.parametrize(
    ("outputs", "y", "kind", "metric"),
    [
        (1, torch.arange(18) % 2, "binary", "accuracy"),
        (1, (torch.arange(18) % 2).float(), "binary", "accuracy"),
        (1, torch.linspace(-1, 1, 18), "regression", "mae"),
        (1, torch.linspace(-1, 1, 18)[:, None], "regression", "mae"),
        (2, torch.randn(18, 2, generator=torch.Generator().manual_seed(0)), "regression", "mae"),
        (3, (torch.arange(54).reshape(18, 3) % 2).float(), "multilabel", "accuracy"),
        (3, torch.arange(18) % 3, "classification", "accuracy"),
    ],
)
def test_the_targets_decide_the_task(outputs: int, y: Tensor, kind: str, metric: str) -> None:
    tuner = make().replace_head(outputs)
    tuner.fit((data()[0], y), (data()[0], y), epochs=2, lr=0.05, progress=False)

    assert tuner.task is not None
    assert tuner.task.kind == kind
    assert tuner.history[1]["loss"] < tuner.history[0]["loss"]
    assert f"val_{metric}" in tuner.history[0]
    assert tuner.predict(data()[0]).shape == (18, outputs)


# ---------------------------------------------------------------------- failing leaves all as it was

WITH_NAN = data()[0].clone()
WITH_NAN[5, 1] = torch.nan
FAILS: dict[str, tuple[type[FineTuneError], str, dict[str, Any]]] = {
    "no path": (DataError, "nowhere", {"train": "/nowhere/at/all"}),
    "no data": (DataError, "cannot be used", {"train": 3}),
    "lengths": (DataError, "18 inputs and 17 labels", {"train": (data()[0], data()[1][:-1])}),
    "labels out of range": (DataError, "out of range", {"train": (data()[0], data()[1] + 1)}),
    "one class": (DataError, "one class", {"train": (data()[0], torch.zeros(18, dtype=torch.int64))}),
    "not finite": (DataError, "sample 5", {"train": (WITH_NAN, data()[1])}),
    "val labels": (DataError, "out of range", {"val": (data()[0], data()[1] + 3)}),
    "val share": (ArgumentError, "above 0 and below 1", {"val": 1.5}),
    "batch size": (ArgumentError, "batch_size", {"batch_size": 0}),
    "epochs": (ArgumentError, "epochs", {"epochs": 0}),
    "schedule": (ArgumentError, "cosine", {"schedule": "cosin"}),
    "strategy": (ArgumentError, "linear_probe", {"strategy": "linear_prob"}),
    "no phases": (ArgumentError, "list of Phase", {"strategy": []}),
    "pattern": (PatternError, "layer1", {"strategy": [Phase("fc"), Phase("layr1")]}),
    "rate": (ArgumentError, "Expected lr to be a number above 0", {"lr": -1.0}),
    "rate pattern": (PatternError, "stem", {"lr": {"*": 1e-3, "stm": 1e-4}}),
    "monitor": (ArgumentError, "no monitored value 'val_los'", {"callbacks": [EarlyStopping("val_los")]}),
    "resume": (CheckpointError, "cannot be read", {"resume_from": "/nowhere.safetensors"}),
    "augment": (ArgumentError, "augmentation", {"augment": lambda picture: picture}),
}


@pytest.mark.parametrize("case", FAILS)
def test_a_fit_that_fails_before_its_first_update_leaves_everything_as_it_was(case: str) -> None:
    error, words, arguments = FAILS[case]
    tuner = make().freeze("layer1")
    tuner.fit(data(), progress=False)
    tuner.model.train()
    tuner.model.fc.eval()
    expected = tuner.evaluate(data())
    history, before = [dict(row) for row in tuner.history], weights(tuner.model)
    state, flagged, moded, task = random_state(), flags(tuner.model), modes(tuner.model), tuner.task

    with pytest.raises(error, match=words):
        tuner.fit(**{"train": data(), "progress": False, **arguments})

    assert equal(weights(tuner.model), before)
    assert [dict(row) for row in tuner.history] == history
    assert random_state() == state
    assert (flags(tuner.model), modes(tuner.model)) == (flagged, moded)
    assert tuner.task == task
    assert tuner.evaluate(data()) == expected


def test_data_that_is_of_no_use_does_not_change_the_task() -> None:
    tuner = make()
    tuner.fit(data(), progress=False)
    with pytest.raises(FineTuneError):
        tuner.fit((WITH_NAN, torch.randn(18)), progress=False)
    fresh = make(tuner.model)
    with pytest.raises(DataError):
        fresh.evaluate((WITH_NAN, torch.randn(18)))

    assert tuner.task is not None
    assert tuner.task.kind == "classification"
    assert fresh.task is None


def test_an_error_half_way_keeps_what_was_trained_and_restores_modes_and_randomness() -> None:
    class Fails(FineTuner):
        def training_step(self, batch: Any) -> Any:
            loss = super().training_step(batch)
            return loss if len(self.history) == 0 else loss._replace(loss=loss.loss * torch.nan)

    tuner = Fails(net(), device="cpu")
    tuner.model.stem.eval()
    state, before = random_state(), modes(tuner.model)
    with pytest.raises(NonFiniteError, match="epoch 2, update 1"):
        tuner.fit(data(), epochs=3, progress=False)

    assert len(tuner.history) == 1
    assert random_state() == state
    assert modes(tuner.model) == before
    assert all(parameter.isfinite().all() for parameter in tuner.model.parameters())


# ---------------------------------------------------------------------- verbs on the model


def test_verbs_chain_in_their_order() -> None:
    tuner = make()
    assert tuner.replace_head(2).freeze().unfreeze("layer1").freeze("layer1.0") is tuner

    trainable = {name for name, p in tuner.model.named_parameters() if p.requires_grad}
    assert trainable == {"layer1.3.weight", "layer1.3.bias", "fc.weight", "fc.bias"}
    assert all(flags(tuner.unfreeze().model))
    assert not any(flags(tuner.freeze("*").model))


def test_freeze_alone_leaves_the_head() -> None:
    tuner = make().freeze()
    assert {name for name, p in tuner.model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}

    before = weights(tuner.model)
    tuner.fit(data(), epochs=2, lr=0.1, progress=False)
    after = weights(tuner.model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}


def test_a_model_frozen_by_hand_is_frozen_here() -> None:
    model = net()
    for parameter in model.layer1.parameters():
        parameter.requires_grad = False
    before = weights(model)
    make(model).fit(data(), epochs=2, lr=0.1, progress=False)

    assert all(torch.equal(before[name], value) for name, value in weights(model).items() if "layer1" in name)
    assert not torch.equal(before["stem.weight"], model.stem.weight)


@pytest.mark.parametrize(
    ("verb", "error"),
    [
        (lambda tuner: tuner.freeze("layr1"), PatternError),
        (lambda tuner: tuner.freeze(["stem", "nothing"]), PatternError),
        (lambda tuner: tuner.unfreeze(["layer1", "nothing"]), PatternError),
        (lambda tuner: tuner.replace_head(0), ArgumentError),
        (lambda tuner: tuner.replace_head(True), ArgumentError),
        (lambda tuner: tuner.replace_head(2.0), ArgumentError),
        (lambda tuner: tuner.replace_head(2, layer="stem"), HeadError),
        (lambda tuner: tuner.replace_head(2, layer="fd"), HeadError),
        (lambda tuner: tuner.replace_head(2, head=nn.Linear(9, 2)), HeadError),
        (lambda tuner: tuner.replace_head(2, head="apend"), HeadError),
    ],
)
def test_a_verb_that_fails_leaves_the_model_as_it_was(verb: Callable[[FineTuner], Any], error: type[Exception]) -> None:
    tuner = make().freeze("layer1")
    before, flagged, modules = weights(tuner.model), flags(tuner.model), dict(tuner.model.named_modules())
    tuner.classes = ("a", "b", "c")

    with pytest.raises(error):
        verb(tuner)

    assert equal(weights(tuner.model), before)
    assert flags(tuner.model) == flagged
    assert dict(tuner.model.named_modules()) == modules
    assert tuner.classes == ("a", "b", "c")


def test_trap_03_nothing_trainable_is_an_error_and_a_frozen_new_head_a_warning() -> None:
    tuner = make().freeze("*")
    with pytest.raises(ArgumentError, match="unfreeze"):
        tuner.fit(data(), progress=False)

    tuner = make().replace_head(3).freeze("fc")
    with pytest.warns(UserWarning, match="head 'fc' is frozen") as caught:
        tuner.fit(data(), progress=False)
    assert caught[0].filename == __file__


def test_a_new_head_forgets_class_names_and_task_and_begins_a_new_history(pets: Path) -> None:
    tuner = images_tuner()
    tuner.fit(pets, progress=False)
    tuner.replace_head(3)
    assert not tuner.history

    assert tuner.classes is None
    assert tuner.task is None


# ---------------------------------------------------------------------- classes


def test_trap_35_the_training_classes_rule(tmp_path: Path) -> None:
    train = folder_of(tmp_path / "train", "ant", "bee", "cat")
    fewer = folder_of(tmp_path / "fewer", "bee", "cat")
    more = folder_of(tmp_path / "more", "ant", "dog")
    tuner = images_tuner().replace_head(3)
    before = weights(tuner.model)

    with pytest.raises(DataError, match=r"class 'dog', which the training data does not have"):
        tuner.fit(train, more, progress=False)
    assert equal(weights(tuner.model), before)
    assert tuner.classes is None

    tuner.fit(train, fewer, epochs=1, progress=False)
    assert tuner.classes == ("ant", "bee", "cat")
    logits = tuner.predict(sorted(fewer.rglob("*.png")))
    right = logits.argmax(1) == torch.tensor([1] * 4 + [2] * 4)
    assert tuner.evaluate(fewer)["accuracy"] == pytest.approx(right.float().mean().item())
    with pytest.raises(DataError, match="'dog'"):
        tuner.evaluate(more)


# ---------------------------------------------------------------------- modes


def mixed(tuner: FineTuner) -> list[bool]:
    for i, module in enumerate(tuner.model.modules()):
        module.training = i % 2 == 0
    return modes(tuner.model)


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict"])
def test_trap_40_every_mode_is_as_before(verb: str) -> None:
    tuner = make().freeze("layer1")
    before = mixed(tuner)
    given = {"fit": {"train": data(), "val": data(), "progress": False}}.get(verb, {"data": data()})
    getattr(tuner, verb)(**given)

    assert modes(tuner.model) == before


@pytest.mark.parametrize("returned", ["raises", "a vector"])
@pytest.mark.parametrize(
    ("verb", "step"),
    [
        ("fit", "training_step"), ("fit", "validation_step"), ("evaluate", "validation_step"),
        ("predict", "predict_step"),
    ],
)  # fmt: skip
def test_trap_40_every_mode_is_as_before_when_a_step_fails_half_way(verb: str, step: str, returned: str) -> None:
    calls = []

    def fails(self: FineTuner, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) < 2:
            return getattr(FineTuner, step)(self, batch)
        if returned == "raises":
            raise KeyError("half-way")
        return {"a": 1} if step == "predict_step" else torch.zeros(3, requires_grad=True)

    tuner = type("Fails", (FineTuner,), {step: fails})(net(), device="cpu")
    before = mixed(tuner)
    given = {"fit": {"train": data(), "val": data(), "progress": False}}.get(verb, {"data": data()})
    with pytest.raises((KeyError, ArgumentError)) as caught:
        getattr(tuner, verb)(**given, batch_size=4)

    assert modes(tuner.model) == before
    assert len(calls) > 1
    assert caught.tb is not None  # while the traceback is held, the frames it holds are alive


# ---------------------------------------------------------------------- randomness


def test_the_same_seed_gives_the_same_weights_and_another_others() -> None:
    def trained(seed: int, noise: int) -> dict[str, Tensor]:
        torch.manual_seed(noise)
        tuner = make(seed=seed).replace_head(4)
        tuner.fit(data(), 0.25, epochs=2, batch_size=4, progress=False)
        return weights(tuner.model)

    with torch.random.fork_rng(devices=[]):
        assert equal(trained(0, 1), trained(0, 2))
        assert not equal(trained(0, 1), trained(1, 1))


def test_the_users_random_state_is_not_touched(pets: Path) -> None:
    state = random_state()
    tuner = make().replace_head(3)
    tuner.fit(data(), data(), progress=False)
    tuner.evaluate(data())
    tuner.predict(data())
    tuner.fit(DataLoader(TensorDataset(*data()), shuffle=True, batch_size=5), progress=False)
    tuner.summary()
    images_tuner().fit(pets, progress=False)
    make("squeezenet1_1", weights=None).replace_head(2)

    assert random_state() == state


def test_two_fits_in_a_row_go_on() -> None:
    tuner = make()
    orders: list[list[float]] = []

    class Watched(FineTuner):
        def training_step(self, batch: Any) -> Any:
            orders.append(batch[0][:, 0].tolist())
            return super().training_step(batch)

    tuner = Watched(net(), device="cpu")
    for _ in range(2):
        tuner.fit(data(), batch_size=18, progress=False)

    assert [row["epoch"] for row in tuner.history] == [1, 2]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


# ---------------------------------------------------------------------- evaluate and predict


@pytest.mark.parametrize("batch_size", [1, 2, 5, 17, 18, 100])
def test_trap_18_evaluation_and_prediction_are_exact_for_any_batch_size(batch_size: int) -> None:
    tuner = make(metrics=["accuracy", "f1"])
    X, y = data()
    y = y.clone()
    y[-3:] = 0
    tuner.model.eval()
    logits = tuner.model(X)

    values = tuner.evaluate((X, y), batch_size=batch_size)
    assert next(iter(values)) == "loss"
    assert values["loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert values["accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
    assert values["f1"] == pytest.approx(make(tuner.model, metrics="f1").evaluate((X, y), batch_size=18)["f1"])
    torch.testing.assert_close(tuner.predict(X, batch_size=batch_size), logits.detach())


def test_predictions_are_the_rows_of_every_form_of_images(pets: Path, tmp_path: Path) -> None:
    tuner = images_tuner()
    files = sorted(pets.rglob("*.png"))
    rows = tuner.predict(files, batch_size=3)

    assert rows.shape == (8, 2)
    torch.testing.assert_close(torch.cat([tuner.predict(file) for file in files]), rows)
    torch.testing.assert_close(tuner.predict(files[::-1]), rows.flip(0))
    torch.testing.assert_close(tuner.predict(pets), rows)
    loose = tmp_path / "loose"
    loose.mkdir()
    for file in files:
        file.rename(loose / file.name)
    torch.testing.assert_close(tuner.predict(str(loose)), rows)


def test_trap_36_a_corrupt_image_is_named(pets: Path) -> None:
    (pets / "cat" / "cat2.png").write_bytes(b"no image")
    tuner = images_tuner()
    for verb in (tuner.predict, tuner.evaluate, tuner.fit):
        with pytest.raises(DataError, match=r"cat2\.png"):
            verb(pets)
    tuner.fit(pets, val=False, skip_corrupt=True, progress=False)
    assert len(tuner.history) == 1


class Nothing(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def test_predicting_nothing_is_an_error(tmp_path: Path) -> None:
    for nothing in (Nothing(), torch.zeros(0, 4), [], tmp_path):
        with pytest.raises(DataError):
            make().predict(nothing)


def test_a_model_that_squeezes_its_single_output_predicts_a_row_a_sample() -> None:
    class Squeezed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze()

    tuner = make(Squeezed(1))
    assert tuner.predict(data()[0], batch_size=17).shape == (18,)


# ---------------------------------------------------------------------- the constructor


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": 3}, "nn.Module or a name"),
        ({"model": "resnet19"}, "Did you mean"),
        ({"precision": "fp8"}, "precision"),
        ({"device": "gpu"}, "device"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"max_grad_norm": 0}, "max_grad_norm"),
        ({"weight_decay": -1}, "weight_decay"),
    ],
)
def test_a_wrong_argument_is_an_error_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        FineTuner(**{"model": net(), "device": "cpu", **settings})


def test_the_model_is_used_in_place_and_local_weights_are_loaded(tmp_path: Path) -> None:
    model, other = net(), net(seed=5)
    torch.save(other.state_dict(), tmp_path / "w.pth")
    tuner = make(model, weights=tmp_path / "w.pth")

    assert tuner.model is model
    assert tuner.head is model.fc
    assert equal(weights(model), weights(other))
    assert "fc" in str(tuner.summary())


@pytest.mark.parametrize(
    ("inputs", "hint"),
    [
        (torch.zeros(6, 3, 12, 12, dtype=torch.uint8), "uint8 inputs are scaled only as images"),
        (torch.zeros(6, 12, 12, 3), "look channels-last"),
        (torch.zeros(6, 3, 12, 12, dtype=torch.float64), "X.float()"),
        (torch.zeros(6, 1, 12, 12), "that the model expects"),
    ],
)
def test_inputs_that_the_model_does_not_accept_are_said_before_training(inputs: Tensor, hint: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    tuner = FineTuner(net, device="cpu")
    with pytest.raises(DataError, match=r"Sequential does not accept the data") as raised:
        tuner.fit((inputs, torch.arange(6) % 3))
    assert hint in str(raised.value)
    assert len(tuner.history) == 0


def test_bytes_with_another_number_of_channels_never_broadcast() -> None:
    tuner = FineTuner(nn.Conv2d(3, 2, 3), device="cpu", preprocessing={"crop_size": (8, 8)})
    for inputs in (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(DataError, match=r"Expected \[N, 3, H, W\]"):
            tuner.predict(inputs)


def test_a_head_that_trains_in_an_earlier_phase_is_no_reason_to_warn() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    tuner = FineTuner(net, device="cpu").replace_head(3)
    tuner.fit((torch.rand(6, 4), torch.arange(6) % 3), strategy=[Phase("2"), Phase("0")])
    assert [row["lr"].keys() for row in tuner.history] == [{"2"}, {"0"}]


def test_a_second_look_at_the_model_costs_no_forward_pass_and_says_the_same() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    tuner = FineTuner(model, device="cpu")
    X = torch.randn(8, 3)
    first = tuner.predict(X, batch_size=4)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))

    assert torch.equal(tuner.predict(X, batch_size=4), first)
    assert len(calls) == 2
    with pytest.raises(DataError, match="does not accept"):
        tuner.predict(torch.randn(8, 5))
    with pytest.raises(DataError, match="does not accept"):
        tuner.evaluate((torch.randn(8, 5), torch.arange(8) % 2))


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict"])
def test_data_that_the_model_does_not_accept_leaves_the_summary_as_it_was(verb: str) -> None:
    bad = (torch.randn(40, 9), torch.arange(40) % 3)
    tuner = make()
    fresh = str(tuner.summary())
    with pytest.raises(DataError, match="does not accept"):
        getattr(tuner, verb)(bad if verb != "predict" else bad[0])
    assert str(tuner.summary()) == fresh

    tuner.fit(data(), epochs=1, progress=False)
    known, trained = tuner._known, str(tuner.summary())
    with pytest.raises(DataError, match="does not accept"):
        getattr(tuner, verb)(bad if verb != "predict" else bad[0])
    assert tuner._known is known
    assert str(tuner.summary()) == trained


def test_a_copy_in_the_models_place_can_be_rebuilt_from_a_checkpoint(tmp_path: Path) -> None:
    tuner = FineTuner("squeezenet1_1", weights=None, device="cpu").replace_head(3)
    tuner.model = copy.deepcopy(tuner.model)
    path = tuner.save_checkpoint(tmp_path / "model.safetensors")
    assert FineTuner.load_checkpoint(path).head.out_channels == 3


def test_a_step_may_put_a_teacher_in_the_models_place(tmp_path: Path) -> None:
    class Distillation(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            student, self.model = self.model, nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
            with torch.no_grad():
                target = self.predict_step(batch)
            self.model = student
            return (self.model(batch[0]) - target).square().mean()

    tuner = Distillation("squeezenet1_1", weights=None, device="cpu").replace_head(3)
    tuner.fit((torch.rand(4, 3, 32, 32), torch.arange(4) % 3), checkpoint_dir=tmp_path, progress=False)
    assert FineTuner.load_checkpoint(tmp_path / "last.safetensors").head.out_channels == 3


def test_a_model_with_other_layers_is_known_from_scratch() -> None:
    tuner = make().replace_head(2)
    tuner.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert tuner.head is tuner.model[2]


def test_the_history_can_be_replaced() -> None:
    tuner = make()
    data = torch.randn(6, 4), torch.arange(6) % 3
    tuner.fit(data, progress=False)
    tuner.history = History()
    assert [row["epoch"] for row in tuner.fit(data, progress=False)] == [1]


NUMPY = {
    "epochs": {"epochs": np.int64(1)},
    "batch_size": {"batch_size": np.int32(4)},
    "lr": {"lr": np.float32(1e-3)},
    "pair of lr": {"lr": (np.float32(1e-4), np.float32(1e-3))},
    "array of lr": {"lr": np.array([1e-4, 1e-3])},
    "lr by name": {"lr": {"*": np.float32(1e-3)}},
    "val": {"val": np.float32(0.25)},
    "lp_ft": {"strategy": "lp_ft", "epochs": np.int64(2), "lr": np.float32(1e-3)},
    "patience": {"val": 0.25, "callbacks": [EarlyStopping(patience=np.int64(2))]},
}  # fmt: skip


@pytest.mark.parametrize("arguments", NUMPY.values(), ids=NUMPY)
def test_numbers_of_numpy_are_numbers(arguments: dict[str, Any], tmp_path: Path) -> None:
    y = np.arange(12) % 3
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    settings = {"seed": np.int64(1), "gradient_accumulation_steps": np.int64(2), "weight_decay": np.float32(0)}
    tuner = FineTuner(model, device="cpu", **settings).replace_head(y.max() + 1)
    tuner.fit((torch.randn(12, 4), y), progress=False, **arguments)
    loaded = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "x.safetensors"), model)
    assert loaded.settings == tuner.settings


def test_a_module_put_on_the_tuner_is_said_to_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuner = make()
    tuner.shared = tuner.head
    tuner.save_checkpoint(tmp_path / "1")
    assert "not the tuner's" not in caplog.text
    tuner.disc = nn.Linear(3, 1)
    tuner.other = torch.optim.SGD(tuner.disc.parameters())
    tuner.fit(data(), epochs=2, checkpoint_dir=tmp_path, progress=False)
    tuner.save_checkpoint(tmp_path / "2")
    assert caplog.text.count("but not the tuner's disc, other") == 1
