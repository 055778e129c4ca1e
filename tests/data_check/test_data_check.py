"""`check_data` on folders, tables, arrays and texts: planted faults are found, and the tuner stays as it was."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from finetune import ArgumentError, DataCheck, DataError, FineTuner
from finetune.cli import main
from tests.data_check.test_duplicates import photo
from tests.helpers.figures import shown_texts


class Counting(nn.Module):
    """A small network that counts the samples it sees."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 4, classes)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        logits: Tensor = self.head(self.drop(self.pool(self.norm(self.conv(x)).relu()).flatten(1)))
        return logits

    @classmethod
    def tuner(cls, classes: int = 2) -> FineTuner:
        torch.manual_seed(0)
        return FineTuner(cls(classes), preprocessing={"crop_size": (32, 32), "resize_size": (32, 32)}, device="cpu")


def folder_of(path: Path, count: int) -> Path:
    """Write pictures of two classes, reddish and bluish ones, in turn."""
    for number in range(count):
        label, tint = (("a", "red"), ("b", "blue"))[number % 2]
        (path / label).mkdir(parents=True, exist_ok=True)
        Image.blend(photo(number), Image.new("RGB", (96, 72), tint), 0.4).save(path / label / f"{number:03d}.png")
    return path


@pytest.fixture
def faulty(tmp_path: Path) -> tuple[Path, Path]:
    """Return training and validation data with a fault of each kind."""
    train, val = folder_of(tmp_path / "train", 80), folder_of(tmp_path / "val", 20)
    for number in range(20):  # other pictures than those of training
        label = "ab"[number % 2]
        tint = ("red", "blue")[number % 2]
        Image.blend(photo(500 + number), Image.new("RGB", (96, 72), tint), 0.4).save(val / label / f"{number:03d}.png")
    (train / "a" / "000.png").rename(train / "b" / "000.png")
    Image.open(train / "a" / "010.png").resize((80, 60)).save(val / "a" / "small.png")
    Image.open(train / "b" / "011.png").save(val / "b" / "same.bmp")
    Image.open(train / "b" / "013.png").save(train / "b" / "again.png")
    Image.open(train / "a" / "014.png").save(train / "b" / "both.png")
    Image.new("RGB", (96, 72), (200, 0, 0)).save(train / "a" / "blank.png")
    (train / "a" / "broken.png").write_bytes(b"none")
    return train, val


def names(rows: Any) -> list[set[str]]:
    return [{Path(sample).name for sample in each.samples} for each in rows]


def test_every_planted_fault_is_found(faulty: tuple[Path, Path]) -> None:
    check = Counting.tuner().check_data(*faulty)
    assert names(check.unreadable) == [{"broken.png"}]
    assert sorted(map(sorted, names(check.leaks))) == [["010.png", "small.png"], ["011.png", "same.bmp"]]
    assert names(check.conflicts) == [{"014.png", "both.png"}]
    assert names(check.duplicates) == [{"013.png", "again.png"}]
    assert {"000.png"} in names(check.wrong_labels)
    assert next(each for each in check.wrong_labels if "000.png" in each.samples[0]).suggestion == "a"
    assert {"blank.png"} in names(check.poor_pictures)
    assert not check.left_out
    assert {each.severity for each in check.errors} == {"error"}
    order = ["error", "warning", "note"]
    assert [order.index(each.severity) for each in check.findings] == sorted(
        order.index(each.severity) for each in check.findings
    )


def test_the_first_samples_of_a_finding_show_its_contrast(tmp_path: Path) -> None:
    for copy in ("train/a/0", "train/a/1", "train/a/2", "train/b/3", "val/a/4"):
        (tmp_path / copy).parent.mkdir(parents=True, exist_ok=True)
        photo(1).save(tmp_path / f"{copy}.png")
    check = Counting.tuner().check_data(tmp_path / "train", tmp_path / "val")
    (leak,), (conflict,) = check.leaks, check.conflicts
    assert [Path(sample).stem for sample in leak.samples] == ["0", "4", "1", "2", "3"]
    assert [Path(sample).stem for sample in conflict.samples] == ["0", "3", "1", "2", "4"]


def test_clean_data_has_hardly_any_findings(tmp_path: Path) -> None:
    check = Counting.tuner().check_data(folder_of(tmp_path, 80))
    assert len(check) <= 2
    assert not check.errors
    assert str(check).startswith("Checked 80 training samples: ")
    assert "Left out: leaks, for lack of validation data." in str(check)


def test_the_model_sees_each_sample_once_and_stays_as_it_was(
    faulty: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 10)  # a file that was written just now is known by its content
    tuner = Counting.tuner().freeze("conv").unfreeze("conv")
    model: Any = tuner.model
    model.conv.eval()
    tuner.check_data(*faulty)
    model.seen = 0
    tuner.check_data(*faulty)
    tried = model.seen  # the features are known, but each verb tries the model on a few samples
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state, known = [part.training for part in model.modules()], torch.get_rng_state(), dict(vars(tuner))
    model.conv.weight.data[0, 0, 0, 0] += 1  # so that features are computed again
    before["conv.weight"] = model.conv.weight.detach().clone()
    model.seen = 0
    tuner.check_data(*faulty)
    assert model.seen == 84 + 22 + tried
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert vars(tuner) == known


def test_a_table_and_a_fraction_are_checked_as_the_folder(faulty: tuple[Path, Path], tmp_path: Path) -> None:
    train, _ = faulty
    (train / "a" / "broken.png").unlink()
    with (tmp_path / "train.csv").open("w", newline="") as file:
        rows = [(path, path.parent.name) for path in sorted(train.rglob("*.png"))]
        csv.writer(file).writerows([("path", "label"), *rows])
    of_folder, of_table = (Counting.tuner().check_data(data) for data in (train, tmp_path / "train.csv"))
    assert names(of_folder.conflicts) == names(of_table.conflicts) == [{"014.png", "both.png"}]
    split = Counting.tuner().check_data(train, 0.5)
    assert len(split.leaks) + len(split.conflicts) + len(split.duplicates) >= 2
    assert len(split.places.sources) == 2


def test_validation_data_in_the_folder_is_used(faulty: tuple[Path, Path]) -> None:
    assert len(Counting.tuner().check_data(faulty[0].parent).leaks) == 2


def test_arrays_are_checked_and_values_that_are_not_finite_are_a_finding() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    X = 4 * torch.eye(8)[y] + torch.randn(120, 8, generator=generator)
    X[3, 2] = torch.nan
    X[4] = X[7]
    given = y.clone()
    given[50] = (y[50] + 1) % 3
    check = FineTuner(nn.Linear(8, 3), device="cpu").check_data((X, given))
    assert [each.samples for each in check.unreadable] == [("sample 3",)]
    assert [each.samples for each in check.duplicates] == [("sample 4", "sample 7")]
    assert ("sample 50",) in [each.samples for each in check.wrong_labels]
    assert any("near duplicates of inputs" in reason for reason in check.left_out)


def test_a_sample_that_a_dataset_fails_to_return_is_a_finding() -> None:
    class Rows(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index in (7, 8):
                raise OSError("disk on fire")
            return torch.full((4,), float(index)), index % 2

    (first, second) = FineTuner(nn.Linear(4, 2), device="cpu").check_data(Rows()).unreadable
    assert (first.samples, second.samples) == (("sample 7",), ("sample 8",))
    assert first.why == "Reading it raised OSError: disk on fire."


def test_a_target_that_is_not_finite_is_a_finding() -> None:
    X, y = torch.randn(40, 4), torch.randn(40, 2)
    y[3, 1], y[5, 0] = torch.nan, torch.inf
    check = FineTuner(nn.Linear(4, 2), device="cpu").check_data((X, y))
    assert [(*each.samples, each.why) for each in check.unreadable] == [
        ("sample 3", "its target is NaN or infinite"),
        ("sample 5", "its target is NaN or infinite"),
    ]


def test_one_sample_is_checked_too() -> None:
    check = FineTuner(nn.Linear(4, 2), device="cpu").check_data((torch.randn(1, 4), torch.zeros(1, dtype=torch.long)))
    assert str(check).startswith("Checked 1 training sample: nothing was found.")


def test_pictures_in_arrays_are_pictures() -> None:
    X = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    X[5] = 128
    check = Counting.tuner().check_data((X, torch.arange(60) % 2))
    assert [each.samples for each in check.poor_pictures] == [("sample 5",)]
    floats = Counting.tuner().check_data((X / 255, torch.arange(60) % 2))
    assert [each.samples for each in floats.poor_pictures] == [("sample 5",)]
    assert any("scale of floats" in reason for reason in floats.left_out)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [(torch.randn(60), "numbers, not classes"), (torch.eye(3).repeat(20, 1), "several labels each")],
)
def test_a_task_without_one_class_per_sample_is_said(targets: Tensor, reason: str) -> None:
    X = torch.randn(60, 4)
    X[1] = X[0]
    width = 1 if targets.dim() == 1 else 3
    check = FineTuner(nn.Linear(4, width), device="cpu").check_data((X, targets))
    assert reason in " ".join(check.left_out)
    assert len(check.duplicates) == 1
    assert "wrong labels" not in check.checked


def test_features_that_say_nothing_are_said() -> None:
    X = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    check = FineTuner(nn.Linear(4, 2), device="cpu").check_data((X, torch.arange(80) % 2))
    assert not check.wrong_labels
    assert "hardly better than guessing" in " ".join(check.left_out)


def test_streams_and_wrong_arguments_are_errors() -> None:
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)
    tuner = FineTuner(nn.Linear(4, 2), device="cpu")
    with pytest.raises(DataError, match="Of a DataLoader, pass its dataset"):
        tuner.check_data(torch.utils.data.DataLoader(data))
    with pytest.raises(ArgumentError, match="samples"):
        tuner.check_data(data, samples=0)
    assert isinstance(tuner.check_data(data), DataCheck)


def test_a_part_of_the_samples_is_stratified() -> None:
    X, y = torch.randn(90, 4), torch.arange(90) % 3
    check = FineTuner(nn.Linear(4, 3), device="cpu").check_data((X, y), samples=30)
    assert len(check.places) == 30


def test_findings_in_files_hold_each_sample(faulty: tuple[Path, Path], tmp_path: Path) -> None:
    check = Counting.tuner().check_data(*faulty)
    with check.to_csv(tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sample"] for row in rows] == [sample for each in check.findings for sample in each.samples]
    assert {row["part"] for row in rows if row["kind"] == "leak"} == {"training", "validation"}
    lines = check.to_jsonl(tmp_path / "found.jsonl").read_text().splitlines()
    assert [tuple(json.loads(line)["samples"]) for line in lines] == [each.samples for each in check.findings]
    assert list(check.to_pandas()) == list(rows[0])


def test_text_page_and_sheet_show_the_findings(faulty: tuple[Path, Path], tmp_path: Path) -> None:
    check = Counting.tuner().check_data(*faulty)
    text, html = str(check), check._repr_html_()
    for each in check.findings[:3]:
        assert each.why in text
    assert html.count("<img") >= 8
    assert "broken.png" in text
    assert "broken.png" in html
    shown = " ".join(each.get_text() for each in shown_texts(check.plot(tmp_path / "sheet.png", theme="dark")))
    assert "Leaks" in shown
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_data_without_findings_says_what_was_checked() -> None:
    X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    check = FineTuner(nn.Linear(4, 1), device="cpu").check_data((X, X[:, 0]), (X[:1] + 1, X[:1, 0]))
    assert str(check).startswith("Checked 40 training and 1 validation samples: nothing was found.\nChecked for")
    assert check.plot()._suptitle.get_text().replace("\n", " ").endswith("nothing was found")


def test_the_command_line_writes_findings_and_exits_by_errors(
    faulty: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = faulty
    out, sheet = tmp_path / "found.csv", tmp_path / "found.png"
    model = ["--model", "squeezenet1_1", "--weights", "none", "--batch-size", "16"]
    with pytest.raises(SystemExit) as ended:
        main(["check-data", str(train), "--val", str(val), *model, "--out", str(out), "--sheet", str(sheet)])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert said.startswith("Checked 84 training and 22 validation samples: ")
    assert f"wrote {out}" in said
    assert out.is_file()
    assert sheet.is_file()
    main(["check-data", str(val), *model])


def test_examples_of_confusable_classes_alternate() -> None:
    y = torch.arange(240) % 4
    X = 0.1 * torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
    X[torch.arange(240), y.clamp_max(2)] += 1  # nothing tells 2 from 3
    (found,) = FineTuner(nn.Linear(4, 4), device="cpu").check_data((X, y)).confusable
    assert y[list(found.numbers)].tolist() == [2, 3, 2, 3]
