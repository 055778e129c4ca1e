"""A report holds everything that its task has, at every size, and is written whole or not at all."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from finetune import ArgumentError, FineTuner
from finetune.cli import main
from tests.helpers.files import SPECIAL, make_special
from tests.helpers.image_files import labeled_images, picture
from tests.helpers.pages import Page

ALWAYS = ["Data", "Training", "Model", "Configuration", "Environment", "Repeat this report"]
SAMPLES = ["Worst mistakes", "Surest right answers"]


def tuner_of(features: int, outputs: int, **options: Any) -> FineTuner:
    torch.manual_seed(0)
    return FineTuner(nn.Sequential(nn.Flatten(), nn.Linear(features, outputs)), device="cpu", **options)


def page_of(tuner: FineTuner, path: Path, data: Any, **options: Any) -> tuple[str, Page]:
    """Write a report, check its form, and return its text and its content."""
    written = tuner.report(path / "report.html", data, **options)
    text = written.read_text(encoding="utf-8")
    page = Page(text)
    assert not list(page.faults())
    assert len(text) < 5_000_000
    return text, page


@pytest.mark.parametrize("classes", [2, 300])
def test_classes(classes: int, tmp_path: Path) -> None:
    data = torch.rand(2 * classes, 3, 8, 8), torch.arange(2 * classes) % classes
    tuner = tuner_of(192, classes)
    tuner.fit(data, epochs=1, lr=1e-6, progress=False)
    tuner.classes = ["<script>alert(1)</script>", *map("class {}".format, range(1, classes))]
    _, page = page_of(tuner, tmp_path, data)
    assert page.said("h2") == ["Confusion", "Classes", "Probabilities", *SAMPLES, *ALWAYS]
    assert ("The 10 weakest classes" in page.said("h3")) == (classes > 10)
    assert {*tuner.classes} <= {*page.said("th")}
    assert {"precision", "recall", "f1", "support"} <= {*page.said("th")}
    assert ("top-5 accuracy" in page.said("dt")) == (classes > 5)
    plots = [image["alt"] for image in page.all("img") if "on-" in image.get("class", "")]
    assert len(plots) == (10 if classes == 2 else 8)
    assert plots[0].startswith(f"Confusion matrix of {classes:,} classes. ")
    assert len(page.all("img")) > len(plots) + (20 if classes > 2 else 0)


def test_labels(tmp_path: Path) -> None:
    X, _ = labeled_images(30)
    targets = torch.arange(30)[:, None].bitwise_and(torch.tensor([1, 2, 4])).bool().float()
    targets[:, 2] = 0
    tuner = tuner_of(108, 3)
    tuner.fit((X, targets), progress=False)
    tuner.classes = "cat", "dog", "eel"
    _, page = page_of(tuner.calibrate((X, targets)), tmp_path, (X, targets))
    (thresholds,) = (value for value in page.said("dd") if value.startswith("cat ") and ", eel " in value)
    assert [pair.split()[0] for pair in thresholds.split(", ")] == ["cat", "dog", "eel"]
    assert page.said("h2") == ["Labels", "Probabilities", *SAMPLES, *ALWAYS]
    assert "1 of 3 labels have no samples here." in page.said("p")
    assert "Areas under the curves" in page.said("summary")
    assert "accuracy per label" in page.said("dt")


def test_values(tmp_path: Path) -> None:
    X = torch.randn(40, 4)
    tuner = tuner_of(4, 2, loss="mse")
    tuner.fit((X, X[:, :2]), (X, X[:, :2]), epochs=3, progress=False)
    _, page = page_of(tuner, tmp_path, (X, X[:, :2]))
    assert page.said("h2") == ["Values", "Largest errors", *ALWAYS]
    assert "sample" in page.said("th")  # there is nothing to see of vectors, so the samples are a table
    assert any("val_loss " in image["alt"] and "3 epochs" in image["alt"] for image in page.all("img"))


def test_texts(tmp_path: Path) -> None:
    from examples.text import generate_reviews, small_bert

    texts, labels = generate_reviews()
    texts = [f"{text} <b> שלום" for text in texts[:40]]
    model, tokenizer = small_bert()
    tuner = FineTuner(model, preprocessing=tokenizer, device="cpu")
    tuner.fit((texts, labels[-20:] + labels[:20]), progress=False)
    _, page = page_of(tuner, tmp_path, (texts, labels[:20] + labels[-20:]))
    shown = page.said("blockquote")
    assert shown
    assert {*shown} <= {*texts}


def test_a_model_that_is_always_right_and_not_trained(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(9 * torch.eye(3))
    _, page = page_of(FineTuner(model, device="cpu"), tmp_path, (torch.eye(3), torch.arange(3)))
    assert {"No class is taken for another.", "None.", "The model has not been trained by finetune."} <= {
        *page.said("p")
    }


@pytest.mark.no_cover
def test_a_report_changes_nothing(tmp_path: Path, same: Any, state_of: Any) -> None:
    data = labeled_images(30)
    tuner = tuner_of(108, 3)
    tuner.fit(data, progress=False)
    before, generator, known = state_of(tuner.model), torch.get_rng_state(), tuner._known
    tuner.report(tmp_path / "report.html", data)
    assert same(before, state_of(tuner.model))
    assert torch.equal(generator, torch.get_rng_state())
    assert (tuner._known.history, tuner._known.classes) == (known.history, known.classes)
    assert np.isfinite(tuner.evaluate(data)["loss"])


@pytest.mark.parametrize("kind", SPECIAL)
def test_the_path_is_checked_first(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "report"
    make_special(path, kind)
    with pytest.raises(ArgumentError, match=f"cannot be written to {re.escape(str(path))}.*the path of a file"):
        tuner_of(4, 2).report(path, "no such data")


def convolutional(outputs: int, **options: Any) -> FineTuner:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs)
    return FineTuner(nn.Sequential(*layers), device="cpu", **options)


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_mistakes_have_heatmaps(kind: str, tmp_path: Path) -> None:
    X, y = torch.rand(12, 3, 9, 9), torch.arange(12) % 3
    targets = {"classes": y, "labels": nn.functional.one_hot(y, 3).float(), "values": torch.randn(12, 3)}[kind]
    tuner = convolutional(3, loss="mse" if kind == "values" else None)
    tuner.fit((X, targets), progress=False)
    _, page = page_of(tuner, tmp_path, (X, targets))
    maps = [image for image in page.all("img") if image["alt"].startswith("Evidence for the answer in sample")]
    assert len(maps) == len(tuner.interpret((X, targets)).mistakes(20)) > 0
    assert any(re.search(r"by Grad-CAM at the layer [01]\.", line) for line in page.said("p"))
    assert ("bright" in page.said("dt")) == (kind != "classes")


def test_a_model_without_positions_says_so(tmp_path: Path) -> None:
    X, y = labeled_images(12)
    _, page = page_of(tuner_of(108, 3), tmp_path, (X, y))
    assert any(line.startswith("There are no heatmaps. Sequential has no layer") for line in page.said("p"))
    assert not [image for image in page.all("img") if image["alt"].startswith("Evidence")]


def test_the_data_is_checked(tmp_path: Path) -> None:
    X, y = labeled_images(30)
    X = torch.cat([X, X[:1]])
    y = torch.cat([y, y[:1]])
    tuner = tuner_of(108, 3)
    tuner.fit((X, y), progress=False)
    _, page = page_of(tuner, tmp_path, (X[20:], y[20:]), train=(X, y))
    assert "leak" in page.said("td")
    assert "Nothing was found." not in page.said("p")


def test_an_error_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ArgumentError, match="shape"):
        FineTuner(nn.Conv2d(3, 2, 1), loss="cross_entropy", device="cpu").report(
            path, (torch.zeros(4, 3, 4, 4), torch.zeros(4, 4, 4, dtype=torch.int64))
        )
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.no_cover
def test_the_code_and_the_command_repeat_the_report(
    class_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class_folder("train", cat=2, dog=2)
    monkeypatch.chdir(tmp_path)
    tuner = FineTuner("squeezenet1_1", weights=None, device="cpu", preprocessing={"crop_size": 32, "resize_size": 32})
    tuner.replace_head(2).fit("train", False, progress=False)
    tuner.save_checkpoint("it's.safetensors")
    tuner = FineTuner.load_checkpoint("it's.safetensors")
    page = Page(tuner.report("b.html", "train", train=Path("train"), batch_size=3).read_text())
    assert page.said("h1") == ["squeezenet1_1 on train"]
    code, command = page.said("code")

    def content(name: str) -> str:
        return re.sub(r"\d{4}-\d\d-\d\d \S+ UTC", "", Path(name).read_text())

    before = content("b.html")
    for repeat in (lambda: exec(code, {}), lambda: main(shlex.split(command)[1:])):
        Path("b.html").unlink()
        repeat()
        assert content("b.html") == before
    assert capsys.readouterr().out.endswith("wrote b.html\n")


@pytest.mark.no_cover
def test_pictures_of_files_are_small(class_folder: Any, tmp_path: Path) -> None:
    folder = class_folder("train", cat=2, dog=2)
    picture(9, (2000, 1500)).save(folder / "cat" / "large.png")
    Image.new("L", (3, 3)).save(folder / "dog" / "small.png")
    tuner = FineTuner("squeezenet1_1", weights=None, device="cpu", preprocessing={"crop_size": 32, "resize_size": 32})
    text, page = page_of(tuner.replace_head(2), tmp_path, folder)
    images = [image for image in page.all("img") if image["alt"].startswith(str(folder))]
    sizes = [int(image["width"]) for image in images]
    assert len(sizes) == 6 + 3  # each among the mistakes or the surest, and the findings on three of them
    assert max(sizes) == 224
    assert len(text) < 1_000_000
