"""Data is opened and tried before a pass: the meaning of labels, the task, the loss and the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from finetune import FineTuner
from finetune.callbacks import ClassWeights
from finetune.errors import ArgumentError, DataError, HeadError
from tests.helpers.datasets import Flow, Items


def image(path: Path, level: int) -> Path:
    """Write a gray image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level,) * 3).save(path)
    return path


def of_images(outputs: int, **settings: Any) -> FineTuner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, outputs))
    size = {"crop_size": (8, 8), "resize_size": 8}
    return FineTuner(model, preprocessing=size, device="cpu", **settings)


def table(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["table", "objects", "array", "strings of a list"])
def test_integers_of_a_regression_are_the_numbers(tmp_path: Path, form: str) -> None:
    ages = [10 + 5 * (k % 9) for k in range(18)]
    paths = [image(tmp_path / f"{k}.png", 4 * age) for k, age in enumerate(ages)]
    data: Any = {
        "table": table(tmp_path / "ages.csv", "path,age", [f"{p.name},{a}" for p, a in zip(paths, ages, strict=True)]),
        "objects": (paths, np.array(ages, object)),
        "array": (paths, np.array(ages)),
        "strings of a list": (paths, ages),
    }[form]
    tuner = of_images(1, loss="mse")
    tuner.fit(data, val=False, progress=False)

    error = (tuner.predict(data if form == "table" else paths)[:, 0] - torch.tensor(ages)).abs().mean().item()

    assert tuner.evaluate(data)["mae"] == pytest.approx(error, rel=1e-4)
    assert tuner.classes is None


def test_whole_numbers_validate_a_regression_as_numbers(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{k}.png", 9 * k) for k in range(12)]
    train = table(tmp_path / "train.csv", "path,age", [f"{p.name},{10 * k + 0.5}" for k, p in enumerate(paths)])
    val = table(tmp_path / "val.csv", "path,age", [f"{p.name},{10 * k}" for k, p in enumerate(paths)])

    tuner = of_images(1)
    row = tuner.fit(train, val, lr=1e-9, progress=False)[0]

    expected = (tuner.predict(paths)[:, 0] - 10 * torch.arange(12)).abs().mean().item()
    assert row["val_mae"] == pytest.approx(expected, rel=1e-3)


def test_integers_for_one_output_could_mean_two_tasks(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{k}.png", 9 * k) for k in range(6)]
    ages = table(tmp_path / "ages.csv", "path,age", [f"{p.name},{10 + k}" for k, p in enumerate(paths)])

    with pytest.raises(DataError, match=r"replace_head\(6\).*pass loss='mse'"):
        of_images(1).fit(ages, val=False, progress=False)
    assert of_images(6).fit(ages, val=False, progress=False)[0]["accuracy"] >= 0
    assert "mae" in of_images(1, loss="mse").fit(ages, val=False, progress=False)[0]
    own = of_images(1, loss=lambda outputs, targets: ((outputs[:, 0] - targets.flatten()) ** 2).mean())
    assert own.fit(ages, val=False, progress=False)[0]["loss"] > 100  # of ages, not of ranks


def test_label_columns_are_matched_by_name(tmp_path: Path) -> None:
    rows = [(image(tmp_path / f"{k}.png", 20 + 200 * (k % 2)).name, k % 2) for k in range(8)]
    train = table(tmp_path / "train.csv", "path,label_a,label_b", [f"{p},{a},{1 - a}" for p, a in rows])
    swapped = table(tmp_path / "val.csv", "path,label_b,label_a", [f"{p},{1 - a},{a}" for p, a in rows])
    tuner = of_images(2)
    tuner.fit(train, swapped, progress=False)

    assert tuner.classes == ("label_a", "label_b")
    assert tuner.evaluate(train) == tuner.evaluate(swapped)
    loaded = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "m.safetensors"), of_images(2).model)
    assert loaded.evaluate(train) == loaded.evaluate(swapped)
    for header in ("path,label_a,label_c", "path,label_a", "path,label_a,label_b,label_c"):
        cells = ",1" * header.count("label")
        other = table(tmp_path / "other.csv", header, [f"{rows[0][0]}{cells}"] * 2)
        with pytest.raises(DataError):
            tuner.evaluate(other)


def test_numeric_folder_names_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    paths = [image(tmp_path / str(k) / "0.png", 20 * k) for k in range(11)]
    tuner = of_images(11)
    tuner.fit(tmp_path, val=False, progress=False)

    assert tuner.classes == tuple(map(str, range(11)))
    assert tuner.evaluate(tmp_path) == pytest.approx(tuner.evaluate((paths, list(range(11)))))


def test_integers_name_classes_that_are_numbers(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{k}.png", 80 * k) for k in range(3)]
    data = table(tmp_path / "data.csv", "path,label", [f"{p.name},{10 * k}" for k, p in enumerate(paths)])
    tuner = of_images(3)
    tuner.fit(data, val=False, progress=False)

    assert tuner.classes == ("0", "10", "20")
    assert tuner.evaluate((paths, [0, 10, 20])) == pytest.approx(tuner.evaluate(data))
    with pytest.raises(DataError, match="has the class '1'"):
        tuner.evaluate((paths, [0, 1, 2]))


@pytest.mark.parametrize("form", ["folder", "table", "pair", "names in items"])
def test_names_after_numbers_need_their_order(tmp_path: Path, form: str) -> None:
    paths = [image(tmp_path / name / "0.png", level) for name, level in (("cat", 20), ("dog", 120), ("owl", 220))]
    names = [path.parent.name for path in paths]
    numbers = torch.tensor([2, 1, 0])
    tuner = of_images(3)
    tuner.fit((paths, numbers), val=False, epochs=60, lr=3e-2, augment=False, progress=False)
    rows = [f"{p.relative_to(tmp_path).as_posix()},{n}" for p, n in zip(paths, names, strict=True)]
    named: Any = {
        "folder": tmp_path,
        "table": table(tmp_path / "t.csv", "path,label", rows),
        "pair": (paths, names),
        "names in items": [(Image.open(p).copy(), n) for p, n in zip(paths, names, strict=True)],
    }[form]

    with pytest.raises(DataError, match=r"names \(cat, dog, owl\).*tuner\.classes"):
        tuner.evaluate(named)
    with pytest.raises(DataError, match="names"):
        of_images(3).fit((paths, numbers), named, progress=False)
    tuner.classes = ("owl", "dog", "cat")
    assert tuner.evaluate(named) == pytest.approx(tuner.evaluate((paths, numbers)))


def test_numeric_names_after_numbers_are_these_numbers(tmp_path: Path) -> None:
    paths = [image(tmp_path / "data" / str(k) / "0.png", 100 * k) for k in range(3)]
    tuner = of_images(3)
    tuner.fit((paths, [0, 1, 2]), val=False, progress=False)
    some = table(tmp_path / "some.csv", "path,label", [f"data/{k}/0.png,{k}" for k in (2, 1)])

    assert tuner.evaluate(tmp_path / "data") == pytest.approx(tuner.evaluate((paths, [0, 1, 2])))
    assert tuner.evaluate(some) == pytest.approx(tuner.evaluate((paths[:0:-1], [2, 1])))


def test_a_resumed_run_keeps_its_classes(tmp_path: Path) -> None:
    for name, level in (("cat", 40), ("dog", 220)):
        image(tmp_path / "data" / name / "0.png", level)

    def run(epochs: int) -> FineTuner:
        tuner = of_images(2)
        run_dir = tmp_path / "run"
        tuner.fit(
            tmp_path / "data", val=False, epochs=epochs, checkpoint_dir=run_dir, resume_from="auto", progress=False
        )
        return tuner

    assert run(1).classes == run(2).classes == ("cat", "dog")
    (tmp_path / "data" / "cat").rename(tmp_path / "data" / "wolf")
    with pytest.raises(DataError, match=r"class 'wolf'.*known classes are cat, dog"):
        run(3)


def test_a_run_on_numbers_does_not_go_on_with_names(tmp_path: Path) -> None:
    paths = [image(tmp_path / "data" / name / "0.png", level) for name, level in (("cat", 40), ("dog", 220))]

    def run(data: Any, classes: Any = None) -> FineTuner:
        tuner, folder = of_images(2), tmp_path / "run"
        tuner.classes = classes
        tuner.fit(data, val=False, checkpoint_dir=folder, resume_from="auto", progress=False)
        return tuner

    run((paths, [1, 0]))
    run((paths, [1, 0]))
    with pytest.raises(DataError, match="names"):
        run(tmp_path / "data")
    assert run(tmp_path / "data", ("dog", "cat")).classes == ("dog", "cat")


@pytest.mark.parametrize("form", ["arrays", "items", "loader", "stream"])
def test_zeros_before_other_numbers_are_no_binary_task(form: str) -> None:
    X, rain = torch.randn(100, 4), torch.cat([torch.zeros(70), torch.arange(30) / 5])
    items = list(zip(X, rain, strict=True))
    data: Any = {
        "arrays": (X, rain),
        "items": Items(items),
        "loader": DataLoader(TensorDataset(X, rain), batch_size=10),
        "stream": Flow(items),
    }[form]
    tuner = FineTuner(nn.Linear(4, 1), device="cpu")

    if form in ("arrays", "items"):
        assert "mae" in tuner.fit(data, progress=False)[0]
    else:
        with pytest.raises(DataError, match=r"neither 0 nor 1.*pass loss='mse'"):
            tuner.fit(data, progress=False)
    assert "mae" in FineTuner(nn.Linear(4, 1), loss="mse", device="cpu").fit(data, progress=False)[0]


def test_a_regression_has_no_names(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        image(tmp_path / name / "0.png", 9)
    with pytest.raises(DataError, match=r"regression, but the labels are names: cat, dog.*replace_head\(2\)"):
        of_images(1, loss="mse").fit(tmp_path, val=False, progress=False)


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        ("mse", torch.zeros(12, 4), r"outputs of shape \[2, 3\], but the targets .* \[2, 4\].*replace_head\(4\)"),
        ("bce", torch.zeros(12), "Expected the same shape"),
        (nn.CrossEntropyLoss(weight=torch.ones(2)), torch.arange(12) % 3, "The loss does not accept outputs"),
        ("cross_entropy", torch.zeros(12, 5).long(), "The loss does not accept outputs of shape"),
    ],
)
def test_a_loss_that_does_not_fit_is_an_error_before_the_first_step(loss: Any, targets: Any, message: str) -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()

    for verb in ("fit", "evaluate", "find_lr"):
        with pytest.raises(DataError, match=message):
            getattr(FineTuner(model, loss=loss, device="cpu"), verb)((torch.randn(12, 4), targets))
    assert torch.equal(model.weight, before)


def test_a_metric_that_does_not_fit_is_an_error_before_the_first_step() -> None:
    from torchmetrics.classification import BinaryAUROC

    tuner = FineTuner(nn.Linear(4, 3), metrics={"area": BinaryAUROC()}, device="cpu")
    with pytest.raises(ArgumentError, match="'area'"):
        tuner.fit((torch.randn(12, 4), torch.arange(12) % 3), progress=False)
    assert not tuner.history


@pytest.mark.parametrize("data", [Items(list(torch.randn(8, 4))), Flow(list(torch.randn(8, 4)))])
def test_samples_without_labels_are_an_error(data: Any) -> None:
    with pytest.raises(DataError, match="no labels"):
        FineTuner(nn.Linear(4, 3), device="cpu").fit(data, progress=False)


@pytest.mark.parametrize("label", [(3, 0.5), (3, 7), [0, 1]])
def test_a_custom_step_gets_the_labels_as_they_are(label: Any) -> None:
    class TwoTargets(FineTuner):
        def training_step(self, batch: Any) -> Any:
            x, (a, b) = batch
            return ((self.model(x)[:, 0] - a) ** 2 + (self.model(x)[:, 0] - b) ** 2).mean()

    items = Items([(x, label) for x in torch.randn(8, 4)])
    for data in (items, DataLoader(items, batch_size=4)):
        assert TwoTargets(nn.Linear(4, 2), device="cpu").fit(data, progress=False)[0]["loss"] > 0


def test_labels_that_were_all_read_can_be_counted() -> None:
    class Looking(ClassWeights):
        def on_fit_begin(self, run: Any) -> None:
            super().on_fit_begin(run)
            self.found = self._by_class.tolist()

    weights = Looking()
    items = Items([(x, int(k == 0)) for k, x in enumerate(torch.randn(8, 4))])
    FineTuner(nn.Linear(4, 2), device="cpu").fit(items, callbacks=[weights], progress=False)
    assert weights.found == pytest.approx([8 / 14, 8 / 2])


@pytest.mark.parametrize("loss", [None, "cross_entropy", nn.CrossEntropyLoss()])
@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Sigmoid(), nn.ReLU()])
def test_fit_and_evaluate_refuse_the_same_outputs(end: nn.Module, loss: Any) -> None:
    X, y = torch.randn(12, 4), torch.arange(12) % 3
    tuner = FineTuner(nn.Sequential(nn.Linear(4, 3), end), loss=loss, device="cpu")
    for verb in (tuner.fit, tuner.evaluate, tuner.find_lr):
        with pytest.raises(HeadError, match="to be logits, but its forward applies"):
            verb((X, y))


def test_a_custom_validation_step_may_take_probabilities() -> None:
    class Own(FineTuner):
        def validation_step(self, batch: Any) -> torch.Tensor:
            inputs, targets = batch
            return nn.functional.nll_loss(self.model(inputs).log(), targets)

    X, y = torch.randn(12, 4), torch.arange(12) % 3
    tuner = Own(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), device="cpu")
    expected = nn.functional.nll_loss(tuner.model(X).log(), y).item()
    assert tuner.evaluate((X, y))["loss"] == pytest.approx(expected)
    with pytest.raises(HeadError, match="applies softmax"):
        tuner.fit((X, y), progress=False)


def test_predict_says_once_that_outputs_without_a_task_are_no_logits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "finetune")
    tuner = FineTuner(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), device="cpu")
    for _ in range(2):
        tuner.predict(torch.randn(5, 4))
    assert caplog.text.count("The model applies softmax to its outputs") == 1

    trained = FineTuner(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), loss="mse", device="cpu")
    trained.fit((torch.randn(5, 4), torch.rand(5)), progress=False)
    trained.predict(torch.randn(5, 4))
    assert "applies sigmoid" not in caplog.text


@pytest.mark.parametrize("form", ["items", "loader", "stream"])
def test_a_third_part_of_a_sample_is_said_for_all_data(form: str, caplog: pytest.LogCaptureFixture) -> None:
    X, y = torch.randn(12, 4), torch.arange(12) % 3
    parts = [(x, label, 1.0) for x, label in zip(X, y, strict=True)]
    three: Any = {"items": Items(parts), "loader": DataLoader(Items(parts), batch_size=5), "stream": Flow(parts)}[form]

    def said(action: Any) -> int:
        caplog.clear()
        action()
        return caplog.text.count("Samples have 3 parts")

    fresh, tuner = (FineTuner(nn.Linear(4, 3), device="cpu") for _ in range(2))
    assert said(lambda: fresh.evaluate(three)) == 1
    assert said(lambda: tuner.fit((X, y), progress=False)) == 0
    assert said(lambda: tuner.evaluate(three)) == 1
    assert said(lambda: tuner.evaluate((X, y))) == 0
    assert said(lambda: tuner.fit(three, progress=False)) == 1
    assert said(lambda: tuner.fit(three, Items(parts), progress=False)) == 1
    assert said(lambda: tuner.fit((X, y), Items(parts), progress=False)) == 1
    assert said(lambda: tuner.find_lr(three, steps=10)) == 1


def test_a_second_input_in_validation_data_is_an_error_before_training() -> None:
    X, y = torch.randn(12, 4), torch.arange(12) % 3
    tuner = FineTuner(nn.Linear(4, 3), device="cpu")
    before = tuner.model.weight.clone()
    val = Items([(x, x, label) for x, label in zip(X, y, strict=True)])
    for verb in (lambda: tuner.fit((X, y), val, progress=False), lambda: tuner.evaluate(val)):
        with pytest.raises(DataError, match="looks like a mask or a second input"):
            verb()
    assert torch.equal(tuner.model.weight, before)


def test_a_custom_step_may_use_the_third_part(caplog: pytest.LogCaptureFixture) -> None:
    class Weighted(FineTuner):
        def training_step(self, batch: Any) -> torch.Tensor:
            inputs, targets, weights = batch
            return (nn.functional.cross_entropy(self.model(inputs), targets, reduction="none") * weights).mean()

        validation_step = training_step

    data = Items([(torch.randn(4), k % 3, 1.0) for k in range(12)])
    tuner = Weighted(nn.Linear(4, 3), device="cpu")
    tuner.fit(data, data, progress=False)
    tuner.evaluate(data)
    assert "Samples have 3 parts" not in caplog.text


y = torch.arange(90) % 3
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))[y] * 3 + torch.sin(torch.arange(360.0)).reshape(90, 4)


def _with_nan(form: str) -> Any:
    rows, numbers = F.one_hot(y, 3).float(), y.float()
    rows[::7, 1] = numbers[3] = torch.nan
    items = [(X[i], numbers[i]) for i in range(len(X))]
    forms = {
        "rows": (X, rows),
        "numbers": (X, numbers),
        "infinite": (X, numbers.nan_to_num(torch.inf)),
        "items": items,
        "loader": DataLoader(items, batch_size=8),
    }
    return forms[form]


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("form", ["rows", "numbers", "infinite", "items", "loader"])
def test_targets_that_are_not_finite_are_named(form: str, outputs: int) -> None:
    data = _with_nan(form)
    for verb in ("fit", "evaluate", "find_lr"):
        with pytest.raises(DataError, match=r"not finite; the first is that of .*(sample|item) [03]\b"):
            getattr(FineTuner(nn.Linear(4, outputs), device="cpu"), verb)(data)


@pytest.mark.parametrize("labels", [["owl", "cat"], ["cat", "dog"], ["cat", ""], ["", ""], ["owl", "cat|dog"]])
def test_single_names_of_a_model_of_several_are_rows(tmp_path: Path, labels: list[str]) -> None:
    classes = ("cat", "dog", "owl")
    paths = [image(tmp_path / f"{k}.png", 30 * k) for k in range(6)]
    tuner = of_images(3)
    tuner.fit((paths, [["cat"], ["dog"], ["owl"], ["cat", "owl"], [], ["dog"]]), val=False, progress=False)
    rows = torch.tensor([[float(name in cell.split("|")) for name in classes] for cell in labels * 3])
    cells = [f"{path.name},{cell}" for path, cell in zip(paths, labels * 3, strict=True)]

    data = table(tmp_path / "val.csv", "path,label", cells)

    expected = tuner.evaluate((paths, rows))
    assert tuner.evaluate(data) == expected
    assert str(tuner.interpret(data)) == str(tuner.interpret((paths, rows)))
    tuner.save_checkpoint(tmp_path / "m.safetensors")
    assert FineTuner.load_checkpoint(tmp_path / "m.safetensors", tuner.model, device="cpu").evaluate(data) == expected
    assert tuner.fit((paths, rows), data, progress=False)[-1]["val_loss"] == tuner.evaluate(data)["loss"]


def test_class_indices_of_a_model_of_several_are_refused() -> None:
    tuner, X = of_images(3), torch.zeros(6, 3, 8, 8)
    tuner.fit((X, torch.eye(3).repeat(2, 1).bool()), val=False, progress=False)
    with pytest.raises(DataError, match=r"index of a class.*one_hot"):
        tuner.evaluate((X, torch.arange(6) % 3))
